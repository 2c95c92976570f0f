"""Several devices work as one model, and the death of a worker is an error that names it."""

import io
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from resources.embedders.local import LocalEmbedder
from resources.embedders.local_model import device_workers
from resources.embedders.local_model.device_workers import (
    DeviceWorkers,
    WorkerSettings,
    read_message,
    visible_gpus,
    write_message,
)
from resources.embedders.local_model.model_files import FileHashes, ModelFiles
from resources.errors import EmbeddingError, ModelError, TextError
from tests.support.checkout import PROJECT
from tests.support.models import (
    SENTENCES,
    cosines,
    embed_in_threads,
    save_model,
    sentence_transformer,
)

DEVICES = {"device A": {"OMP_NUM_THREADS": "1"}, "device B": {"OMP_NUM_THREADS": "1"}}


def reference(folder: Path, texts: list[str]) -> np.ndarray:
    return sentence_transformer(str(folder)).encode(texts, show_progress_bar=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("workers") / "model")


def settings_of(folder: Path, precision: str = "fp32") -> WorkerSettings:
    files = ModelFiles(folder, "small")
    space = files.space(FileHashes(folder.parent / "hashes.json"))
    return WorkerSettings(files, space, "cpu", precision, 200, folder.parent, packed=True)


@pytest.fixture(scope="module")
def workers(folder):
    workers = DeviceWorkers(settings_of(folder), DEVICES)
    yield workers
    workers.close()
    for worker in workers._workers.values():
        assert worker._process.wait(timeout=60) == 0  # each ends with its parent


def test_calls_from_several_threads_use_all_workers_and_keep_their_order(workers, folder):
    expected = reference(folder, SENTENCES)
    results = embed_in_threads(workers.embed, SENTENCES)
    for number, batch in enumerate(results):
        assert cosines(batch.vectors, expected[number:]).min() >= 1 - 1e-6
    assert results[0].tokens.max() == 48
    assert results[0].truncated_tokens.max() > 0
    assert all(worker._last for worker in workers._workers.values())  # both were asked
    assert all(worker.load == 0 for worker in workers._workers.values())
    assert str(workers).startswith("2 processes (device A, device B): torch")
    assert ", packed, " in str(workers)
    assert "self-check in fp32" in workers.check


def test_text_at_fault_is_named_and_the_workers_live_on(workers):
    with pytest.raises(TextError, match="Text 1 of 2"):
        workers.embed(["fine", "broken \ud800 surrogate"])
    assert np.isfinite(workers.embed(["fine"]).vectors).all()


@pytest.mark.slow
def test_death_of_a_worker_is_an_error_that_names_its_device_and_the_next_call_works(
    workers, folder
):
    worker = workers._workers["device A"]
    errors = []
    os.kill(worker._process.pid, signal.SIGSTOP)  # so that the call is under way when it dies

    def work() -> None:
        try:
            workers.embed(SENTENCES)
        except EmbeddingError as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    while not worker._pending:
        pass
    os.kill(worker._process.pid, signal.SIGKILL)
    thread.join()
    assert "device A: Its process ended with -9 (killed" in str(errors[0])
    assert isinstance(errors[0], ModelError)
    vectors = workers.embed(SENTENCES).vectors
    assert cosines(vectors, reference(folder, SENTENCES)).min() >= 1 - 1e-6
    assert workers._workers["device A"] is not worker


@pytest.mark.slow
def test_failure_to_load_is_explained_by_its_device(folder, tmp_path):
    settings = settings_of(Path(shutil.copytree(folder, tmp_path / "model")))
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"device A: sentence-transformers cannot"):
        DeviceWorkers(settings, {"device A": {}})


LEFT_OPEN = """
import atexit, sys
from types import SimpleNamespace
atexit.register(lambda: print(worker._receiving.is_alive()))
from resources.embedders.local_model.device_workers import _Worker

sys.executable = sys.argv[1]
worker = _Worker("device A", {}, SimpleNamespace(to_message=dict))
"""


def test_a_process_that_leaves_workers_open_waits_for_their_end_before_python_ends(tmp_path):
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\nexec cat > /dev/null\n")
    silent.chmod(0o755)
    command = [sys.executable, "-c", LEFT_OPEN, str(silent)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_message_cut_short_is_an_end():
    stream = io.BytesIO()
    arrays = [np.arange(6, dtype=np.int32).reshape(2, 3), np.zeros((0, 4), np.float32)]
    write_message(stream, {"number": 1}, arrays)
    content = stream.getvalue()
    message = read_message(io.BytesIO(content))
    assert message is not None
    assert message[0] == {"number": 1}
    for read, written in zip(message[1], arrays, strict=True):
        np.testing.assert_array_equal(read, written)
        assert read.dtype == written.dtype
    for length in (0, 5, 20, len(content) - 1):
        assert read_message(io.BytesIO(content[:length])) is None


def test_gpus_are_those_that_this_process_may_see(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert visible_gpus() == {
        "GPU 3": {"CUDA_VISIBLE_DEVICES": "3"},
        "GPU 5": {"CUDA_VISIBLE_DEVICES": "5"},
    }
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert list(visible_gpus()) == ["GPU 0", "GPU 1"]
    assert LocalEmbedder(device="cuda").concurrency == 12


def test_cuda_without_a_device_is_explained(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(device_workers, "visible_gpus", dict)
    embedder = LocalEmbedder(model=str(folder), model_cache=str(tmp_path), device="cuda")
    with pytest.raises(EmbeddingError, match="sees no CUDA device here"):
        embedder.embed(["hello"])


def test_embedder_on_cuda_goes_through_workers(folder, workers, tmp_path, monkeypatch):
    started = []

    def start(settings: WorkerSettings, devices: dict) -> DeviceWorkers:
        started.append((settings.device, settings.precision, settings.packed, devices))
        return workers

    gpus = {"GPU 0": {"CUDA_VISIBLE_DEVICES": "0"}}
    monkeypatch.setattr(device_workers, "visible_gpus", lambda: gpus)
    monkeypatch.setattr(device_workers, "DeviceWorkers", start)
    embedder = LocalEmbedder(model=str(folder), model_cache=str(tmp_path), device="cuda")
    batch = embedder.embed(SENTENCES)
    assert cosines(batch.vectors, reference(folder, SENTENCES)).min() >= 1 - 1e-6
    assert started == [("cuda", "auto", None, gpus)]
    assert "self-check in fp32" in embedder.describe()


@pytest.mark.skipif("not __import__('torch').cuda.is_available()", reason="no CUDA device")
def test_embedder_on_a_gpu_equals_sentence_transformers(folder, tmp_path):
    embedder = LocalEmbedder(model=str(folder), model_cache=str(tmp_path), device="cuda")
    vectors = embedder.embed(SENTENCES).vectors
    assert cosines(vectors, reference(folder, SENTENCES)).min() >= 0.9999
    assert ", packed, " in embedder.describe()

"""One process for each GPU, behind one model.

The calling process tokenizes: it would otherwise compete with a GPU's kernel launches for Python's
lock. A worker gets texts and token ids and gives vectors, through its standard input and output:
eight bytes of length, JSON, and arrays as they lie in memory. It ends when its input does, so that
none outlives a killed parent.
"""

import atexit
import contextlib
import json
import os
import struct
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from resources.embedders.base import EmbeddingBatch
from resources.embedders.local_model.library_errors import from_message, to_message
from resources.embedders.local_model.model_files import ModelFiles
from resources.embedders.local_model.packed_engine import IN_FLIGHT
from resources.embedders.local_model.token_batches import TokenizedTexts, TokenizerPool
from resources.errors import EmbeddingError, ModelError, TextError
from resources.identity.embedding_space import EmbeddingSpace

# --- messages -------------------------------------------------------------------------------------


def write_message(
    stream: BinaryIO, header: Mapping[str, Any], arrays: Sequence[np.ndarray] = ()
) -> None:
    shapes = [[array.dtype.str, array.shape] for array in arrays]
    head = json.dumps({**header, "arrays": shapes}).encode()
    stream.write(struct.pack("<Q", len(head)) + head)
    for array in arrays:
        stream.write(array.tobytes())
    stream.flush()


def read_message(stream: BinaryIO) -> tuple[dict[str, Any], list[np.ndarray]] | None:
    """None at the end of the stream, also in the middle of a message."""
    try:
        (length,) = struct.unpack("<Q", _read(stream, 8))
        header = json.loads(_read(stream, length))
        arrays = []
        for kind, shape in header.pop("arrays"):
            dtype = np.dtype(kind)
            content = _read(stream, dtype.itemsize * int(np.prod(shape)))
            arrays.append(np.frombuffer(content, dtype).reshape(shape))
    except EOFError:
        return None
    return header, arrays


def _read(stream: BinaryIO, size: int) -> bytearray:
    content = bytearray(size)
    view = memoryview(content)
    while view:
        count = stream.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise EOFError
        view = view[count:]
    return content


# --- the calling process --------------------------------------------------------------------------


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker needs to load its model.

    Attributes:
        files: the model's files.
        space: the embedding space of the vectors.
        device: "cuda"; "cpu" in tests.
        precision, batch_tokens, cache, packed: as in `TorchModel`.
    """

    files: ModelFiles
    space: EmbeddingSpace
    device: str
    precision: str
    batch_tokens: int | None
    cache: Path
    packed: bool | None = None

    def to_message(self) -> dict[str, Any]:
        return {
            "folder": str(self.files.folder),
            "name": self.files.name,
            "max_tokens": self.files.max_tokens,
            "space": self.space.to_json(),
            "device": self.device,
            "precision": self.precision,
            "batch_tokens": self.batch_tokens,
            "cache": str(self.cache),
            "packed": self.packed,
        }

    @classmethod
    def from_message(cls, message: dict[str, Any]) -> "WorkerSettings":
        return cls(
            files=ModelFiles(Path(message["folder"]), message["name"], message["max_tokens"]),
            space=EmbeddingSpace.from_json(message["space"]),
            device=message["device"],
            precision=message["precision"],
            batch_tokens=message["batch_tokens"],
            cache=Path(message["cache"]),
            packed=message["packed"],
        )


class DeviceWorkers:
    """The same model on several devices; safe to share between threads.

    A call goes to the least busy device, whole: several calls at a time keep several busy.
    """

    def __init__(self, settings: WorkerSettings, devices: Mapping[str, Mapping[str, str]]) -> None:
        """Starts one process for each device, and waits until all have loaded the model.

        Args:
            settings: what each worker loads.
            devices: a name for people of each device, and the environment variables that select it.

        Raises:
            EmbeddingError: a worker could not load the model (the error names its device), or there
            is no device.
        """
        if not devices:
            raise ModelError(
                "torch sees no CUDA device here. Set device to cpu, or install a build of torch "
                "for CUDA and a driver that it can use.",
            )
        self._settings = settings
        self._tokenizers = TokenizerPool(
            settings.files.tokenizer, settings.space.max_tokens, settings.files.truncation_side
        )
        self._lock = threading.Lock()
        self._devices = dict(devices)
        self._workers = {name: self._start(name) for name in devices}
        try:
            for worker in self._workers.values():  # all load at a time
                worker.wait_until_ready()
        except EmbeddingError:
            self.close()
            raise

    def embed(self, texts: Sequence[str], prompt: str = "") -> EmbeddingBatch:
        """Embeds the texts on the least busy device, in one call.

        Raises:
            EmbeddingError: as `TorchModel.embed`; or the process died, and the next call
                starts another.
        """
        tokenized = self._tokenizers.tokenize(texts, prompt)
        worker = self._least_busy(len(tokenized.tokens))
        try:
            vectors = worker.embed(texts, prompt, tokenized)
        finally:
            with self._lock:
                worker.load -= len(tokenized.tokens)
        return tokenized.with_vectors(vectors)

    def close(self) -> None:
        """Ends the workers."""
        for worker in self._workers.values():
            worker.close()

    def __del__(self) -> None:
        if "_workers" in self.__dict__:
            self.close()

    @property
    def check(self) -> str:
        """The workers' self-checks."""
        return "; ".join(dict.fromkeys(worker.check for worker in self._workers.values()))

    def __str__(self) -> str:
        kinds = "; ".join(dict.fromkeys(str(worker) for worker in self._workers.values()))
        count = len(self._workers)
        return kinds if count == 1 else f"{count} processes ({', '.join(self._workers)}): {kinds}"

    def _start(self, name: str) -> "_Worker":
        return _Worker(name, self._devices[name], self._settings)

    def _least_busy(self, tokens: int) -> "_Worker":
        with self._lock:
            worker = min(self._workers.values(), key=lambda worker: worker.load)
            if worker.ended:
                worker.close()
                worker = self._workers[worker.name] = self._start(worker.name)
            worker.load += tokens
        try:
            worker.wait_until_ready()
        except EmbeddingError:
            with self._lock:
                worker.load -= tokens
            raise
        return worker


def visible_gpus() -> dict[str, dict[str, str]]:
    """The CUDA devices that this process may use, for `DeviceWorkers`; empty if there are none."""
    import torch

    count = torch.cuda.device_count()  # asks no more: this process needs no memory on a GPU
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    ids = allowed[:count] if len(allowed) >= count and allowed[0] else map(str, range(count))
    return {f"GPU {device}": {"CUDA_VISIBLE_DEVICES": device} for device in ids}


class _Worker:
    """One process. `load` is guarded by `DeviceWorkers`."""

    def __init__(self, name: str, environment: Mapping[str, str], settings: WorkerSettings) -> None:
        self.name = name
        self.load = 0
        self.check = ""
        self._about = ""
        self._pending: dict[int, Future[tuple[dict[str, Any], list[np.ndarray]]]] = {}
        self._ready = self._pending[0] = Future()
        self._last = 0
        self._lock = threading.Lock()
        self._ended = False
        self._said: Any = tempfile.TemporaryFile()  # noqa: SIM115 as long as the process
        project = Path(__file__).parents[3]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "resources.embedders.local_model.device_workers"],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(project), os.environ.get("PYTHONPATH", "")]),
                "HF_HUB_OFFLINE": "1",  # all that is needed lies in the model's folder
                **environment,
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            start_new_session=True,  # a Ctrl-C is for the parent, whose end ends this
        )
        self._receiving = threading.Thread(
            target=self._receive, name=f"vectors of {name}", daemon=True
        )
        self._receiving.start()
        _open_workers.add(self)
        self._send(settings.to_message(), [])

    def wait_until_ready(self) -> None:
        """Returns when the process has loaded the model.

        Raises:
            EmbeddingError: the model cannot be loaded, or the process died.
        """
        header, _ = self._ready.result()
        self._raise_if_failed(header)
        self._about, self.check = header["about"], header["check"]

    def embed(self, texts: Sequence[str], prompt: str, tokenized: TokenizedTexts) -> np.ndarray:
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        answer: Future[tuple[dict[str, Any], list[np.ndarray]]] = Future()
        with self._lock:
            self._last += 1
            number = self._last
            self._pending[number] = answer
        self._send(
            {"number": number, "prompt": prompt},
            [
                np.frombuffer(b"".join(encoded), np.uint8),
                np.array([len(text) for text in encoded], dtype=np.int64),
                tokenized.tokens.astype(np.int32),
                tokenized.lengths,
            ],
        )
        header, arrays = answer.result()
        self._raise_if_failed(header)
        return arrays[0]

    @property
    def ended(self) -> bool:
        return self._ended

    def close(self) -> None:
        """The process sees the end of its input and ends."""
        with contextlib.suppress(OSError):
            self._process.stdin.close()  # type: ignore[union-attr]

    def wait_until_ended(self) -> None:
        """Returns when the process has ended, or does not in good time."""
        self._receiving.join(_SECONDS_TO_END)

    def __str__(self) -> str:
        return self._about

    def _send(self, header: dict[str, Any], arrays: Sequence[np.ndarray]) -> None:
        try:
            with self._lock:
                write_message(self._process.stdin, header, arrays)  # type: ignore[arg-type]
        except (OSError, ValueError):
            self._died()

    def _receive(self) -> None:
        while (message := read_message(self._process.stdout)) is not None:  # type: ignore[arg-type]
            with self._lock:
                answer = self._pending.pop(message[0]["number"])
            answer.set_result(message)
        self._died()

    def _died(self) -> None:
        code = self._process.wait()
        with self._lock:
            self._ended = True
            waiting, self._pending = self._pending, {}
        if not waiting:
            return
        self._said.seek(max(0, self._said.seek(0, os.SEEK_END) - 2_000))
        said = self._said.read().decode(errors="replace").strip() or "It said nothing."
        killed = " (killed, perhaps for want of memory)" if code == -9 else ""
        error = to_message(ModelError(f"Its process ended with {code}{killed}. {said}"), ModelError)
        for answer in waiting.values():
            answer.set_result(({"error": error}, []))

    def _raise_if_failed(self, header: dict[str, Any]) -> None:
        if "error" in header:
            raise from_message(header["error"], f"{self.name}: ")


_SECONDS_TO_END = 5.0
_open_workers: "weakref.WeakSet[_Worker]" = weakref.WeakSet()


@atexit.register
def _end_workers() -> None:
    """Before Python ends: of what a thread that still reads keeps alive, DuckDB complains then."""
    workers = list(_open_workers)
    for worker in workers:
        worker.close()
    for worker in workers:
        worker.wait_until_ended()


# --- the worker -----------------------------------------------------------------------------------


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not get between the answers
    requests = sys.stdin.buffer
    writing = threading.Lock()

    def answer(number: int, content: dict[str, Any], *arrays: np.ndarray) -> None:
        with writing:
            write_message(answers, {"number": number, **content}, arrays)

    first = read_message(requests)
    if first is None:
        return
    try:
        model = _load(WorkerSettings.from_message(first[0]))
    except Exception as error:
        answer(0, {"error": to_message(error, ModelError)})
        return
    answer(0, {"about": str(model), "check": str(model.check)})

    def embed(header: dict[str, Any], arrays: list[np.ndarray]) -> None:
        try:
            joined, sizes, tokens, lengths = arrays
            ends = np.cumsum(sizes).tolist()
            content = joined.tobytes()
            texts = [
                content[start:end].decode("utf-8", "surrogatepass")
                for start, end in zip([0, *ends[:-1]], ends, strict=True)
            ]
            tokenized = TokenizedTexts(tokens.astype(np.int64), lengths, np.zeros_like(lengths))
            vectors = model.embed_tokenized(texts, header["prompt"], tokenized)
            answer(header["number"], {}, vectors)
        except Exception as error:
            answer(header["number"], {"error": to_message(error, TextError)})

    with ThreadPoolExecutor(IN_FLIGHT) as threads:
        while (message := read_message(requests)) is not None:
            threads.submit(embed, *message)
        os._exit(0)  # nobody waits for what is still being calculated


def _load(settings: WorkerSettings) -> Any:
    from resources.embedders.local_model.torch_model import TorchModel

    return TorchModel(
        settings.files,
        settings.space,
        settings.device,
        settings.precision,
        settings.batch_tokens,
        settings.cache,
        settings.packed,
    )


if __name__ == "__main__":
    main()

"""A sentence-transformers model on the CPU through OpenVINO: compiled once, then light and fast."""

import json
import logging
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock
from tokenizers import Tokenizer

from resources.embedders.base import EmbeddingBatch
from resources.embedders.cosine import MIN_COSINE, least_cosine
from resources.embedders.local_model.library_errors import failure, from_message
from resources.embedders.local_model.model_compiler import (
    MODEL_FILE,
    REFERENCE_FILE,
    REFERENCE_TEXTS,
    SHORT_REFERENCE_TEXTS,
    TOKENIZER_FILE,
    Manifest,
    UnsupportedModelError,
    compiled_key,
)
from resources.embedders.local_model.model_files import ModelFiles, write_json
from resources.embedders.local_model.token_batches import TextTokenizer, token_batches
from resources.errors import (
    EmbedderOutOfMemoryError,
    EmbeddingError,
    ModelError,
    SelfCheckError,
    TextError,
)
from resources.identity.embedding_space import EmbeddingSpace
from resources.lean_imports import import_openvino
from resources.machine import machine

_log = logging.getLogger(__name__)

Precision = Literal["fp32", "bf16"]

_TOKENS_OF_A_BATCH = 16
"""What a batch costs beside its tokens: the weights are read once for each. Measured with MiniLM in
fp32: 8.2 ms for 16 tokens, and 0.23 ms for each more."""
MIN_GAIN = 1.1
"""bf16 must embed this many times the tokens per second of fp32 to be chosen."""


def compiled_model(files: ModelFiles, space: EmbeddingSpace, cache: Path) -> Path:
    """The folder of the compiled model; compiles it if it is absent or damaged.

    Of several processes that ask at a time, one compiles and the others wait.

    Raises:
        EmbeddingError: sentence-transformers cannot load the model, or the compiler died.
        UnsupportedModelError: OpenVINO cannot run this model; that is remembered.
    """
    key = compiled_key(space)
    folder = cache / key
    manifest = Manifest.read(folder)
    if manifest is None:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{key}.lock"):
            manifest = Manifest.read(folder)
            if manifest is None:
                manifest = _compile(files, cache, key)
    if manifest.unsupported:
        raise UnsupportedModelError(manifest.unsupported)
    return folder


def _compile(files: ModelFiles, cache: Path, key: str) -> Manifest:
    _log.info("Compiling '%s' for this computer, once: about half a minute.", files.name)
    prefix = f".{key}-"
    for leftover in cache.glob(f"{prefix}*"):  # of a killed compiler; we hold its lock
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(dir=cache, prefix=prefix)).resolve()
    try:
        _run_compiler(files, temporary)
        manifest = Manifest.read(temporary)
        if manifest is None:
            raise ModelError(f"The compiler left no model in {temporary}.")
        shutil.rmtree(cache / key, ignore_errors=True)
        temporary.replace(cache / key)
        return manifest
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _run_compiler(files: ModelFiles, output: Path) -> None:
    request = output / "request.json"
    write_json(
        request,
        {
            "folder": str(files.folder),
            "name": files.name,
            "max_tokens": files.max_tokens,
            "output": str(output),
        },
    )
    project = Path(__file__).parents[3]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(project), os.environ.get("PYTHONPATH", "")]),
        "HF_HUB_OFFLINE": "1",  # all that is needed lies in the model's folder
        "TOKENIZERS_PARALLELISM": "false",
    }
    finished = subprocess.run(
        [sys.executable, "-m", "resources.embedders.local_model.model_compiler", str(request)],
        env=environment,
        cwd=output,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if finished.returncode == 0:
        return
    try:
        error = json.loads((output / "error.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        said = finished.stderr.strip()[-2000:] or "It said nothing."
        killed = finished.returncode == -9
        raise ModelError(
            f"The process that compiles '{files.name}' ended with {finished.returncode}"
            f"{' (killed, perhaps for want of memory)' if killed else ''}. {said}",
        ) from None
    raise from_message(error)


@dataclass(frozen=True)
class SelfCheck:
    """How far vectors are from the reference.

    Attributes:
        precision: what was checked.
        cosine: the least cosine to the reference over all reference texts.
    """

    precision: str
    cosine: float

    @property
    def passed(self) -> bool:
        return self.cosine >= MIN_COSINE[self.precision]

    def __str__(self) -> str:
        return f"self-check in {self.precision}: 1 - cosine = {max(0.0, 1 - self.cosine):.0e}"


def check_vectors(precision: str, vectors: np.ndarray, reference: np.ndarray) -> SelfCheck:
    """Compares vectors with those of sentence-transformers, by direction and by length.

    Args:
        precision: the precision of `vectors`.
        vectors: shape (n, dimension), float32.
        reference: shape (n, dimension or more), float32; by sentence-transformers in fp32.
    """
    reference = reference[:, : vectors.shape[1]]
    norms = np.linalg.norm(reference, axis=1)
    meaningful = np.isfinite(norms) & (norms > 0)  # some models give the empty text no vector
    ours, theirs = vectors[meaningful], reference[meaningful]
    lengths = np.linalg.norm(ours, axis=1) / norms[meaningful]
    # A vector of the right direction and another length is wrong too, where none is normalized.
    right_length = bool((np.abs(lengths - 1) < 0.05).all())
    return SelfCheck(precision, least_cosine(ours, theirs) if right_length else -1.0)


_Requests = queue.SimpleQueue[Any]
"""Inference requests that are idle; whoever is submitting takes them, and all give theirs back."""


class OpenVINOModel:
    """A compiled model in one precision; its methods may be called from several threads."""

    def __init__(
        self,
        folder: Path,
        files: ModelFiles,
        space: EmbeddingSpace,
        precision: Precision,
        batch_tokens: int,
    ) -> None:
        """Reads the compiled model and compiles it for this machine's processor.

        Args:
            folder: from `compiled_model`.
            files: the model's files.
            space: the embedding space of the vectors.
            precision: the arithmetic.
            batch_tokens: maximum number of tokens of a batch, padding included.

        Raises:
            EmbeddingError: the folder is damaged.
        """
        manifest = Manifest.read(folder)
        if manifest is None:
            raise ModelError(f"The compiled model in {folder} is incomplete.")
        self.precision: Precision = precision
        self._manifest = manifest
        self._dimension = space.dimension
        self._max_tokens = space.max_tokens
        self._batch_tokens = batch_tokens
        here = machine()
        self._threads, self._streams = here.cores, here.inference_streams
        # Two locks: one call's texts are tokenized while the model works on another's.
        self._tokenizing, self._submitting = threading.Lock(), threading.Lock()
        self._folder = folder
        try:
            self._tokens = TextTokenizer(
                Tokenizer.from_file(str(folder / TOKENIZER_FILE)),
                space.max_tokens,
                files.truncation_side,
            )
            self._reference = np.load(folder / REFERENCE_FILE)
            self._settings = {
                "CACHE_DIR": str(folder / "blobs"),
                "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
                "INFERENCE_NUM_THREADS": self._threads,
                "NUM_STREAMS": self._streams,
                "PERFORMANCE_HINT": "THROUGHPUT",
            }
            self._requests: _Requests | None = self._new_requests()
        except Exception as error:
            what = f"The compiled model in {folder} cannot be loaded"
            raise failure(error, what, ModelError) from error

    def embed(self, texts: Sequence[str], prompt: str = "") -> EmbeddingBatch:
        """Embeds the texts, each with the prompt before it.

        Raises:
            EmbeddingError: a text cannot be tokenized, or OpenVINO failed.
        """
        with self._tokenizing:
            tokenized = self._tokens.tokenize(texts, prompt)
        vectors = self._infer(tokenized.ids, tokenized.lengths)
        return tokenized.with_vectors(vectors)

    def self_check(self, texts: int = len(REFERENCE_TEXTS)) -> SelfCheck:
        """Embeds so many reference texts and compares with what sentence-transformers made."""
        vectors = self.embed(REFERENCE_TEXTS[:texts]).vectors
        return check_vectors(self.precision, vectors, self._reference[:texts])

    def tokens_per_second(self) -> float:
        """The speed on one full batch for each stream."""
        length = min(128, self._batch_tokens, self._max_tokens)
        count = self._streams * max(1, self._batch_tokens // length)
        ids = [np.full(length, self._manifest.pad_id + 1, dtype=np.int64)] * count
        start = time.perf_counter()
        self._infer(ids, np.full(count, length))
        return count * length / (time.perf_counter() - start)

    def __str__(self) -> str:
        openvino = import_openvino()
        return (
            f"OpenVINO {openvino.__version__.split('-')[0]} in {self.precision} on "
            f"{_processor()[0].strip()}, {self._threads} threads in {self._streams} streams"
        )

    def _infer(self, ids: Sequence[np.ndarray], lengths: np.ndarray) -> np.ndarray:
        # The next call begins when this one's last batches are under way, not when they are done:
        # else a stream would be idle at the end of each call.
        try:
            with ExitStack() as turn:
                turn.enter_context(self._submitting)
                self._requests = self._requests or self._new_requests()
                return self._run(self._requests, ids, lengths, submitted=turn.close)
        except Exception as error:
            _log.warning("OpenVINO failed on a batch; the model is loaded anew: %s", error)
        # OpenVINO 2026.4 keeps shapes of a failed batch and fails on the next, which may be another
        # call's. So what failed is tried again alone, on a model that nothing has failed on.
        with self._submitting:
            try:
                self._requests = self._new_requests()
                return self._run(self._requests, ids, lengths, submitted=lambda: None)
            except Exception as error:
                self._requests = None
                raise failure(error, "OpenVINO failed on a batch", TextError) from error

    def _run(
        self,
        requests: _Requests,
        ids: Sequence[np.ndarray],
        lengths: np.ndarray,
        submitted: Callable[[], None],
    ) -> np.ndarray:
        """Calls `submitted` when the last batch is under way."""
        vectors = np.empty((len(ids), self._dimension), dtype=np.float32)
        # No callbacks: they need the GIL on a thread of OpenVINO's, which aborts the process when
        # Python is about to exit.
        running: deque[tuple[Any, np.ndarray]] = deque()

        def collect() -> None:
            request, rows = running[0]
            request.wait()
            # The model may yield more: truncate_dim cuts behind it.
            vectors[rows] = self._output(request)[:, : self._dimension]
            running.popleft()
            requests.put(request)

        try:
            for rows in token_batches(lengths, self._batch_tokens, _TOKENS_OF_A_BATCH):
                padded = self._tokens.padded([ids[row] for row in rows], self._manifest.pad_id)
                if requests.empty() and running:
                    collect()
                request = requests.get()
                running.append((request, rows))
                request.start_async({name: padded[name] for name in self._manifest.inputs})
            submitted()
            while running:
                collect()
        finally:
            for request, _ in running:  # after a failure; others wait for them
                with suppress(Exception):
                    request.wait()
                requests.put(request)
        return vectors

    def _new_requests(self) -> _Requests:
        openvino = import_openvino()
        model = openvino.Core().compile_model(str(self._folder / MODEL_FILE), "CPU", self._settings)
        requests = _Requests()
        # Twice what runs at a time, and one for each of two calls: short batches are done sooner
        # than Python can hand over the next.
        for _ in range(2 * self._streams + 2):
            requests.put(model.create_infer_request())
        return requests

    @staticmethod
    def _output(request: Any) -> np.ndarray:
        return request.get_output_tensor(0).data


def load_openvino_model(
    files: ModelFiles,
    space: EmbeddingSpace,
    cache: Path,
    precision: Literal["auto", "fp32", "bf16"],
    batch_tokens: int,
) -> tuple[OpenVINOModel, str]:
    """Loads the model in the fastest precision that is as good, and proves that it is.

    A damaged compiled model is compiled again.

    Args:
        files: the model's files.
        space: the embedding space of the vectors.
        cache: the folder of compiled models.
        precision: "auto" takes bf16 where the processor has it and it is faster.
        batch_tokens: maximum number of tokens of a batch, padding included.

    Returns:
        The model, and notes on how it was chosen and checked.

    Raises:
        EmbeddingError: it cannot be compiled or loaded, or bf16 was asked for and deviates.
        UnsupportedModelError: OpenVINO cannot run it, or its vectors in fp32 deviate.
    """

    def load(precision: Precision) -> OpenVINOModel:
        return OpenVINOModel(folder, files, space, precision, batch_tokens)

    problem = ""
    for attempt in ("first", "second"):
        folder = compiled_model(files, space, cache)
        try:
            chosen, note = _choose_precision(precision, folder, load)
            model = load(chosen)
            check = _checked(model, folder)
            if check.passed:
                return model, f"{check}{note}"
            problem = f"{check}, but the cosine must be at least {MIN_COSINE[chosen]}"
            if chosen == "bf16":
                raise SelfCheckError(f"'{files.name}' {problem}. Set precision to fp32 or auto.")
        except (SelfCheckError, EmbedderOutOfMemoryError):
            raise
        except EmbeddingError as error:
            if attempt == "second":
                raise
            problem = str(error)
        _log.warning("Discarding the compiled model of '%s': %s", files.name, problem)
        with FileLock(cache / f"{folder.name}.lock"):
            shutil.rmtree(folder, ignore_errors=True)
    raise UnsupportedModelError(problem)


def _checked(model: OpenVINOModel, folder: Path) -> SelfCheck:
    """By all reference texts once for each kind of machine, and by the short ones at each start.

    Those see whether the files are damaged; what the library or the processor does with long texts
    is the same each time.
    """
    record = folder / "self_check.json"
    try:
        proven = json.loads(record.read_text(encoding="utf-8"))["passed"] == str(model)
    except (OSError, ValueError, KeyError, TypeError):
        proven = False
    if proven:
        return model.self_check(SHORT_REFERENCE_TEXTS)
    check = model.self_check()
    if check.passed:
        with suppress(OSError):  # a folder that is only read: then each start checks it all
            write_json(record, {"passed": str(model)})
    return check


def _choose_precision(
    asked: Literal["auto", "fp32", "bf16"],
    folder: Path,
    load: Callable[[Precision], OpenVINOModel],
) -> tuple[Precision, str]:
    """For "auto": bf16 if it is faster here and near enough; remembered for this processor."""
    if asked == "fp32":
        return asked, ""
    processor, has_bf16 = _processor()
    if not has_bf16:  # emulated, it takes a hundred times as long
        return "fp32", "; the processor has no bf16"
    if asked == "bf16":
        return asked, ""
    cpu = f"{processor}, {machine().cores} cores"
    record = folder / "precision.json"
    # One process races, the others wait: at a time they would measure each other.
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        try:
            known = json.loads(record.read_text(encoding="utf-8"))
            return known[cpu]["precision"], known[cpu]["note"]
        except (OSError, ValueError, KeyError, TypeError):
            chosen, note = _race(load)
            # One processor's record is enough: a folder of models is seldom shared between kinds.
            write_json(record, {cpu: {"precision": chosen, "note": note}})
            return chosen, note


def _processor() -> tuple[str, bool]:
    """The processor's name, and whether it calculates in bf16."""
    openvino = import_openvino()
    core = openvino.Core()
    capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return core.get_property("CPU", "FULL_DEVICE_NAME"), "BF16" in capabilities


def _race(load: Callable[[Precision], OpenVINOModel]) -> tuple[Precision, str]:
    models: dict[Precision, OpenVINOModel] = {"fp32": load("fp32"), "bf16": load("bf16")}
    check = models["bf16"].self_check()
    if not check.passed:
        return "fp32", f"; bf16 deviates too far here ({check})"
    models["fp32"].self_check()  # warm, like the other
    speeds: dict[Precision, list[float]] = {"fp32": [], "bf16": []}
    for _ in range(3):
        for name, model in models.items():
            speeds[name].append(model.tokens_per_second())
    fp32, bf16 = float(np.median(speeds["fp32"])), float(np.median(speeds["bf16"]))
    chosen: Precision = "bf16" if bf16 >= MIN_GAIN * fp32 else "fp32"
    return chosen, f"; bf16 runs {bf16 / fp32:.2f} times as fast as fp32 here"

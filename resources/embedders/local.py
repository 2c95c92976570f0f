"""Embeds with a sentence-transformers model on this machine."""

import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field
from tokenizers import Tokenizer

from resources.embedders.base import Embedder, EmbeddingBatch, Role
from resources.embedders.local_model.model_compiler import UnsupportedModelError
from resources.embedders.local_model.model_files import (
    FileHashes,
    ModelFiles,
    find_model,
)
from resources.embedders.local_model.openvino_model import OpenVINOModel, load_openvino_model
from resources.embedders.local_settings import CPU_BATCH_TOKENS, LocalSettings
from resources.identity.embedding_space import EmbeddingSpace
from resources.machine import machine

SECONDS_PER_CALL = 10.0
"""Two are under way, so that one is over about every five. Much shorter calls waste time: their
last batches are not full, and storing their vectors takes as long as for many."""
if TYPE_CHECKING:
    from resources.embedders.local_model.device_workers import DeviceWorkers
    from resources.embedders.local_model.torch_model import TorchModel

CALLS_PER_GPU = 6
"""Three batches are on their way through a GPU while as many are tokenized or stored."""


class LocalEmbedder(LocalSettings, Embedder):
    """Any sentence-transformers model: through OpenVINO on the CPU, through torch on a GPU."""

    model_cache: str = Field(
        default="data/models", description="Folder of compiled models; may be deleted at any time."
    )

    @property
    def space(self) -> EmbeddingSpace:
        return self._space

    @property
    def shorter_dimensions(self) -> Sequence[int]:
        return self._files.shorter_dimensions(self.matryoshka_dimensions)

    @property
    def special_tokens(self) -> int:
        return self._files.special_tokens

    @property
    def max_text_tokens(self) -> int:
        return self._files.token_limit - self.special_tokens - self._files.prompt_tokens

    @property
    def concurrency(self) -> int:
        """Calls of `embed` at a time that keep all devices and the tokenizer busy."""
        device = _available_device(self.device)
        if device == "cuda":
            from resources.embedders.local_model.device_workers import visible_gpus

            return max(1, CALLS_PER_GPU * len(visible_gpus()))
        return 2  # one at the tokenizer, one at the model

    @property
    def streams(self) -> int:
        return machine().inference_streams if self.kind == "openvino" else self.concurrency

    @property
    def seconds_per_call(self) -> float:
        return SECONDS_PER_CALL

    def new_tokenizer(self) -> Tokenizer:
        return self._files.tokenizer()

    def embed(self, texts: Sequence[str], role: Role = "document") -> EmbeddingBatch:
        if not len(texts):
            none = np.zeros(0, dtype=np.int32)
            return EmbeddingBatch(np.zeros((0, self.space.dimension), np.float32), none, none)
        return self._loaded.model.embed(texts, self._files.prompt(role))

    def unload(self) -> None:
        with _loading:
            self.__dict__.pop("_loaded", None)
            _load.cache_clear()  # embedders that are in use hold what they have loaded

    @property
    def kind(self) -> str:
        # Without a question to torch, which costs seconds.
        on_cpu = self.device == "cpu" or (self.device == "auto" and not _has_gpu_driver())
        return "openvino" if on_cpu else "pytorch"

    def describe(self) -> str:
        if "_loaded" not in self.__dict__:  # not worth loading a model for
            return f"{self.model}: not loaded"
        return f"{self.model}: {self._loaded.model}; {self._loaded.note}"

    @cached_property
    def _cache(self) -> Path:
        return Path(self.model_cache).expanduser().absolute()

    @cached_property
    def _space(self) -> EmbeddingSpace:
        self._files.shorter_dimensions(self.matryoshka_dimensions)  # said before any text is sent
        return self._files.space(FileHashes(self._cache / "file_hashes.json"))

    @cached_property
    def _files(self) -> ModelFiles:
        return ModelFiles(
            folder=find_model(self.model, self.revision),
            name=self.model,
            max_tokens=self.max_tokens,
            document_prompt=self.document_prompt,
            query_prompt=self.query_prompt,
        )

    @cached_property
    def _loaded(self) -> "_LoadedModel":
        with _loading:
            return _load(
                self._files,
                self.space,
                self._cache,
                _available_device(self.device),
                self.precision,
                self.batch_tokens,
            )


@dataclass(frozen=True)
class _LoadedModel:
    """A loaded model, and how it came to be loaded so, in words."""

    model: "OpenVINOModel | TorchModel | DeviceWorkers"
    note: str


_loading = threading.Lock()


# Dagster makes a new resource for each run; the runs of one process share what is loaded.
@lru_cache(maxsize=4)
def _load(
    files: ModelFiles,
    space: EmbeddingSpace,
    cache: Path,
    device: str,
    precision: Literal["auto", "fp32", "bf16"],
    batch_tokens: int | None,
) -> _LoadedModel:
    if device == "cuda":
        from resources.embedders.local_model.device_workers import (
            DeviceWorkers,
            WorkerSettings,
            visible_gpus,
        )

        settings = WorkerSettings(files, space, device, precision, batch_tokens, cache)
        model = DeviceWorkers(settings, visible_gpus())
        return _LoadedModel(model, model.check)
    if device == "mps":
        from resources.embedders.local_model.torch_model import TorchModel

        model = TorchModel(files, space, device, precision, batch_tokens)
        return _LoadedModel(model, str(model.check))
    batch_tokens = batch_tokens or CPU_BATCH_TOKENS
    try:
        return _LoadedModel(*load_openvino_model(files, space, cache, precision, batch_tokens))
    except UnsupportedModelError as error:
        from resources.embedders.local_model.torch_model import TorchModel

        model = TorchModel(files, space, "cpu", "fp32", batch_tokens)
        return _LoadedModel(model, f"slower than need be, for OpenVINO cannot run it: {error}")


def _available_device(device: str) -> str:
    if device != "auto":
        return device
    if _has_gpu_driver():  # to ask torch costs seconds
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    return "cpu"


def _has_gpu_driver() -> bool:
    drivers = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg")
    return any(Path(driver).exists() for driver in drivers) or bool(shutil.which("nvidia-smi"))

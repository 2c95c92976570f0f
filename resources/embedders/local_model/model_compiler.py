"""Converts a sentence-transformers model to OpenVINO, in a process of its own.

`python -m resources.embedders.local_model.model_compiler REQUEST.json` reads what to do and writes
into the
folder it names; it is a process of its own so that the memory and the import time of torch and
sentence_transformers do not stay with the caller.
"""

import hashlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from resources.embedders.local_model.library_errors import failure, to_message
from resources.embedders.local_model.model_files import ModelFiles, write_json
from resources.embedders.local_model.token_batches import TextTokenizer
from resources.errors import ModelError
from resources.identity.embedding_space import EmbeddingSpace, canonical_json
from resources.lean_imports import import_openvino

FORMAT = 2
"""Raised when compiled models of earlier versions of this project must not be used."""

MODEL_FILE = "model.xml"
WEIGHTS_FILE = "model.bin"
TOKENIZER_FILE = "tokenizer.json"
REFERENCE_FILE = "reference.npy"
MANIFEST_FILE = "manifest.json"

_FULL_ATTENTION = {"bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta"}

_HIDDEN = -1e9
"""Added to the attention scores of padding: their softmax is 0, in bf16 too."""

REFERENCE_TEXTS = (
    "A pipeline keeps a vector index of documents up to date.",
    "ok",
    "",
    " \n\t ",
    "Größe, naïveté, Владимир, 東京都, مرحبا, हिन्दी, 🙂👍🏽, ﬁ e\u0301",
    "  def f(x: int) -> int:\n    return x ** 2  # UPPER lower 3.14 <b>&amp;</b> foo_bar-baz\n",
    " ".join(f"Sentence {n} of a text of middling length speaks of weather." for n in range(6)),
    " ".join(f"item {n} costs {n * 7 % 13} euro;" for n in range(60)),
)
"""Short, empty, many scripts, and long beyond the limit of small models."""
SHORT_REFERENCE_TEXTS = 6
"""So many of them, the first, cost a tenth of all."""


@dataclass(frozen=True)
class Manifest:
    """What the compiler says about its work.

    Attributes:
        unsupported: why the model cannot run through OpenVINO; "" if it can.
        inputs: names of the model's inputs.
        pad_id: the token id that fills up batches.
        sizes: bytes of each file.
    """

    unsupported: str = ""
    inputs: list[str] = field(default_factory=list)
    pad_id: int = 0
    sizes: dict[str, int] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        write_json(folder / MANIFEST_FILE, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> "Manifest | None":
        """None if the folder is absent or not all there."""
        try:
            manifest = cls(**json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8")))
            whole = all(
                (folder / name).stat().st_size == size for name, size in manifest.sizes.items()
            )
        except (OSError, TypeError, ValueError, AttributeError):
            return None
        return manifest if whole else None


class UnsupportedModelError(RuntimeError):
    """sentence-transformers can run the model, but OpenVINO or our tokenizing cannot."""


def compiled_key(space: EmbeddingSpace) -> str:
    """The name of a compiled model's folder: changes with all that changes what is compiled."""
    details = json.loads(space.details)
    del details["prompts"]  # they are part of the texts
    packages = ("openvino", "sentence-transformers", "tokenizers", "torch", "transformers")
    versions = [version(package) for package in packages]
    parts = canonical_json([FORMAT, space.weights, space.max_tokens, details, versions])
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


def load_sentence_transformer(files: ModelFiles, device: str) -> Any:
    """The model in fp32, with the project's token limit, never running code of the model's own.

    Raises:
        EmbeddingError: sentence-transformers cannot load it, or reads it in another way than
            `ModelFiles`, on which the embedding space rests.
    """
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # one of a tenth of a second, in everybody's log
    try:
        model = SentenceTransformer(
            str(files.folder),
            device=device,
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"dtype": "float32"},
        )
    except Exception as error:
        what = f"sentence-transformers cannot load {files.folder}"
        raise failure(error, what, ModelError) from error
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
    model.eval()
    model.max_seq_length = files.token_limit
    dimension = model.get_embedding_dimension()
    if dimension != files.dimension:
        raise ModelError(
            f"'{files.name}' has {dimension} dimensions, but its files say {files.dimension}.",
        )
    return model


def compile_model(files: ModelFiles, folder: Path) -> Manifest:
    """Writes the model, its tokenizer and reference vectors into a folder.

    Raises:
        EmbeddingError: sentence-transformers cannot load the model.
    """
    from tokenizers import Tokenizer

    model = load_sentence_transformer(files, device="cpu")
    np.save(
        folder / REFERENCE_FILE,
        model.encode(list(REFERENCE_TEXTS), prompt="", show_progress_bar=False),
    )
    try:
        # As transformers reads it, which may differ from the file for some kinds of tokenizer.
        tokenizer = Tokenizer.from_str(model.tokenizer.backend_tokenizer.to_str())
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.save(str(folder / TOKENIZER_FILE))
        _check_token_ids(model, files, tokenizer)
        inputs = _convert(model, folder)
    except Exception as error:
        logging.getLogger(__name__).debug("not converted", exc_info=True)
        return Manifest(unsupported=f"{type(error).__name__}: {error}")
    names = (MODEL_FILE, WEIGHTS_FILE, TOKENIZER_FILE, REFERENCE_FILE)
    return Manifest(
        inputs=inputs,
        pad_id=model.tokenizer.pad_token_id or 0,
        sizes={name: (folder / name).stat().st_size for name in names},
    )


def has_full_attention(config: Any) -> bool:
    """Whether each token sees all of its text, through attention only, and in all layers alike.

    Others could pass a self-check and be wrong on texts longer than its own (sliding windows), or
    read positions in another way (relative biases).

    Args:
        config: a transformer's, of transformers.
    """
    kind, decodes = getattr(config, "model_type", None), getattr(config, "is_decoder", False)
    return kind in _FULL_ATTENTION and not decodes


def _check_token_ids(model: Any, files: ModelFiles, tokenizer: Any) -> None:
    tokens = TextTokenizer(tokenizer, files.token_limit, files.truncation_side)
    long_text = "word, " * files.token_limit
    for text in (*REFERENCE_TEXTS, long_text):
        ours = tokens.tokenize([text]).ids[0].tolist()
        if not ours:
            continue  # tokenizers without special tokens: no model takes the empty text
        theirs = model.preprocess([text])["input_ids"][0].tolist()
        if ours != theirs:
            raise UnsupportedModelError(
                f"its tokens of {text[:40]!r} are {theirs[:8]}… in sentence-transformers, "
                f"but {ours[:8]}… in the bare tokenizer"
            )


def _convert(model: Any, folder: Path) -> list[str]:
    import torch

    openvino = import_openvino()
    features = model.preprocess(["one two three four five", "a much longer text " * 4])
    names = [name for name in features if isinstance(features[name], torch.Tensor)]
    if (
        not {"input_ids", "attention_mask"}
        <= set(names)
        <= {
            "input_ids",
            "attention_mask",
            "token_type_ids",
        }
    ):
        raise UnsupportedModelError(f"its inputs are {', '.join(names)}")
    if any(not getattr(module, "include_prompt", True) for module in model):
        raise UnsupportedModelError("its pooling leaves the prompt's tokens out")

    class SentenceEmbedding(torch.nn.Module):
        """The model with its inputs by position, and the sentence's vector as its one output."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *tensors: Any) -> Any:
            inputs = dict(zip(names, tensors, strict=True))
            return self.model(inputs)["sentence_embedding"]

    dynamic = openvino.PartialShape([-1, -1])
    with torch.no_grad():
        converted = openvino.convert_model(
            SentenceEmbedding(),
            example_input=tuple(features[name] for name in names),
            input=[(dynamic, openvino.Type.i64)] * len(names),
        )
    for port, name in zip(converted.inputs, names, strict=True):
        port.get_tensor().set_names({name})
    if has_full_attention(getattr(getattr(model[0], "auto_model", None), "config", None)):
        _spell_out_attention(converted)
    openvino.save_model(converted, str(folder / MODEL_FILE), compress_to_fp16=False)
    return names


def _spell_out_attention(converted: Any) -> None:
    """Writes softmax((QKᵀ + mask) / √d) V in the form that OpenVINO 2026.4 computes fastest.

    Left to itself, OpenVINO transposes and scales the keys in passes of their own, and reads a
    mask of (tokens × tokens); here the mask is one row, for every token of a text sees the same.
    A forward pass takes 1 to 2 % less time.
    """
    ops = import_openvino().opset13
    for node in converted.get_ordered_ops():
        if node.get_type_name() != "ScaledDotProductAttention" or node.get_input_size() != 5:
            continue
        query, key, value, mask, scale = node.input_values()
        if mask.get_element_type().to_string() != "boolean" or node.get_attributes()["causal"]:
            continue
        first = [ops.constant([number]) for number in (0, 1, 1, 2)]  # start, stop, step, axis
        hidden = ops.select(ops.slice(mask, *first), np.float32(0), np.float32(_HIDDEN))
        # To scale first would be the same, but OpenVINO would move it to the keys.
        scores = ops.multiply(ops.add(ops.matmul(query, key, False, True), hidden), scale)
        attended = ops.matmul(ops.softmax(scores, -1), value, False, False)
        for reader in node.output(0).get_target_inputs():
            reader.replace_source_output(attended.output(0))


def main(arguments: Sequence[str]) -> int:
    request = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    folder = Path(request["output"])
    warnings.simplefilter("ignore")
    try:
        manifest = compile_model(
            ModelFiles(Path(request["folder"]), request["name"], request["max_tokens"]), folder
        )
    except Exception as error:
        write_json(folder / "error.json", to_message(error, ModelError))
        return 1
    manifest.write(folder)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main(sys.argv[1:]))

"""Small models with random weights, and what sentence-transformers itself makes of texts."""

import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from resources.embedders.local import LocalEmbedder
from resources.embedders.local_model import model_compiler
from resources.embedders.local_model.model_files import find_model

SENTENCES = [
    "The northern lights are caused by charged particles that hit the upper atmosphere.",
    "How do I renew a passport?",
    "Rust has no garbage collector.",
    "He bought three apples, two pears and a bunch of grapes.",
    "Interest rates rose by a quarter of a point in March.",
    "for key, value in sorted(mapping.items()): print(key, value)",
    "Die Katze schläft auf dem Sofa.",
    "El tren sale a las ocho y media.",
    "東京は日本の首都です。",
    "Привет, как дела?",
    "مرحبا بالعالم",
    "The quick brown fox jumps over the lazy dog. " * 12,
    "A vector index must never hold vectors of two models. " * 40,
    "UPPER CASE AND lower case",
    "  white space \t around\n and \r\n within  ",
    "<html><body>&nbsp;</body></html>",
    "e\u0301 is é, and ﬁ is a ligature",
    "🙂👍🏽🏳️‍🌈",
    "word",
    "",
    " ",
    ".",
    "[CLS] [SEP] [MASK] <s> </s>",
    "0x1F 3.14159 1e-9 12,345.67",
]


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    left, right = left.astype(np.float64), right.astype(np.float64)
    return (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)


@lru_cache(maxsize=2)
def sentence_transformer(folder: str) -> Any:
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(1)  # small models lose more than they gain by threads
    return SentenceTransformer(
        folder, device="cpu", local_files_only=True, model_kwargs={"dtype": "float32"}
    )


def reference(embedder: LocalEmbedder, texts: list[str], prompt: str = "") -> np.ndarray:
    """What sentence-transformers' own `encode` says, in fp32 on the CPU."""
    model = sentence_transformer(str(find_model(embedder.model)))
    model.max_seq_length = embedder.space.max_tokens
    return model.encode(texts, prompt=prompt, show_progress_bar=False)


def embed_in_threads(embed: Callable[[list[str]], Any], texts: list[str]) -> list[Any]:
    """What six threads get that begin at the same moment, each without one text more."""
    together = threading.Barrier(6)

    def work(number: int) -> Any:
        together.wait()
        return embed(texts[number:])

    with ThreadPoolExecutor(6) as pool:
        return [*pool.map(work, range(6))]


def compile_here(files: Any, output: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model_compiler.compile_model(files, output).write(output)


def bert_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # type: ignore[call-arg]
    tokenizer.normalizer = normalizers.BertNormalizer()  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=special)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return _with_special_tokens(tokenizer, "[UNK] [PAD] [CLS] [SEP] [MASK]", inputs)


def roberta_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))  # type: ignore[assignment]
    inputs = ["input_ids", "attention_mask"]
    return _with_special_tokens(tokenizer, "<unk> <pad> <s> </s> <mask>", inputs)


def _with_special_tokens(tokenizer: Any, special: str, inputs: list[str]) -> Any:
    """As transformers has it; the special tokens are those that its signature names, in order."""
    from transformers import PreTrainedTokenizerFast

    names = ("unk_token", "pad_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=48,
        model_input_names=inputs,
        **dict(zip(names, special.split(), strict=True)),
    )


SIZES: dict[str, Any] = {
    "vocab_size": 500,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


def save_transformer(folder: Path, kind: str = "bert", seed: int = 0) -> Path:
    """A plain transformers model with random weights, large enough that its vectors differ."""
    import torch
    from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

    torch.manual_seed(seed)
    if kind == "bert":
        config = BertConfig(**SIZES, max_position_embeddings=64, initializer_range=0.3)
        model, tokenizer = BertModel(config), bert_tokenizer()
    else:
        config = RobertaConfig(
            **SIZES, max_position_embeddings=50, type_vocab_size=1, initializer_range=0.3
        )
        model, tokenizer = RobertaModel(config), roberta_tokenizer()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_model(
    folder: Path,
    pooling: Any = "mean",
    dense: bool = False,
    normalize: bool = True,
    kind: str = "bert",
    seed: int = 0,
    **settings: Any,
) -> Path:
    """A sentence-transformers model with random weights."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    plain = save_transformer(folder.with_name(f"{folder.name}-plain"), kind, seed)
    transformer = modules.Transformer(str(plain))
    pool = modules.Pooling(32, pooling)
    layers: list[Any] = [transformer, pool]
    if dense:
        torch.manual_seed(seed)
        layers.append(modules.Dense(pool.get_embedding_dimension(), 24))
    if normalize:
        layers.append(modules.Normalize())
    SentenceTransformer(modules=layers, device="cpu", **settings).save(str(folder))
    return folder


LAYOUTS: dict[str, dict[str, Any]] = {
    "mean": {},
    "cls": {"pooling": "cls"},
    "max": {"pooling": "max"},
    "last token": {"pooling": "lasttoken"},
    "two poolings and dense": {"pooling": ("cls", "mean"), "dense": True},
    "not normalized": {"pooling": "mean_sqrt_len_tokens", "normalize": False},
    "truncated dimension": {"truncate_dim": 20},
    "RoBERTa": {"kind": "roberta"},
}

"""Packed batches give the padded reference's vectors, and memory that runs out stops no run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resources.embedders.cosine import MIN_COSINE
from resources.embedders.local_model import packed_engine, torch_model
from resources.embedders.local_model.model_files import FileHashes, ModelFiles, find_model
from resources.embedders.local_model.packed_engine import IN_FLIGHT
from resources.embedders.local_model.token_batches import TextTokenizer, positions
from resources.embedders.local_model.token_budget import (
    PATIENCE,
    PROBE_TOKENS,
    TokenBudget,
    remembered_budget,
    search_budget,
)
from resources.embedders.local_model.torch_model import TorchModel
from resources.errors import EmbeddingError, TextOutOfMemoryError
from tests.support.models import (
    LAYOUTS,
    SENTENCES,
    SIZES,
    bert_tokenizer,
    cosines,
    roberta_tokenizer,
    save_model,
)

LIMIT = 512


def texts_of(lengths: list[int]) -> list[str]:
    """Words of which each is one token, or a few, of the small tokenizers."""
    random = np.random.default_rng(0)
    words = np.array(["apples", "rates", "train", "vectors", ".", "passport"])
    return [" ".join(random.choice(words, length)) for length in lengths]


MIXED = [*SENTENCES, *texts_of([1, 2, 3, 30, 100, 509, 510, 511, 512, 700, 5, 5])]


def files_of(folder: Path) -> ModelFiles:
    return ModelFiles(folder, folder.name)


def space_of(files: ModelFiles, cache: Path) -> Any:
    return files.space(FileHashes(cache / "hashes.json"))


def load(folder: Path, cache: Path, packed: bool = True, batch_tokens: int = 600) -> TorchModel:
    files = files_of(folder)
    return TorchModel(files, space_of(files, cache), "cpu", "fp32", batch_tokens, packed=packed)


def save_kind(folder: Path, kind: str) -> Path:
    """A model of any architecture with random weights and positions for 512 tokens."""
    import torch
    import transformers
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    torch.manual_seed(0)
    settings: dict[str, Any] = {**SIZES, "initializer_range": 0.3}
    offset = kind in ("XLMRoberta", "Roberta", "Camembert", "MPNet")
    positions = LIMIT + (2 if offset else 0)
    if kind == "DistilBert":
        settings = {
            "vocab_size": 500, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64,
            "initializer_range": 0.3,
        }  # fmt: skip
    if kind == "Electra":
        settings["embedding_size"] = 16
    config = getattr(transformers, f"{kind}Config")(**settings, max_position_embeddings=positions)
    plain = folder.with_name(f"{folder.name}-plain")
    getattr(transformers, f"{kind}Model")(config).save_pretrained(plain)
    tokenizer = roberta_tokenizer() if offset else bert_tokenizer()
    tokenizer.model_max_length = LIMIT
    if kind == "DistilBert":
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(plain)
    transformer = modules.Transformer(str(plain))
    model = SentenceTransformer(
        modules=[transformer, modules.Pooling(32, "mean"), modules.Normalize()], device="cpu"
    )
    model.save(str(folder))
    return folder


def padded_reference(folder: Path, texts: list[str]) -> np.ndarray:
    """sentence-transformers' own `encode`, padded, in fp32."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": "float32"})
    return model.encode(texts, show_progress_bar=False)


# --- packed equals padded -------------------------------------------------------------------------


@pytest.mark.slow
def test_default_model_packed_equals_padded_at_all_lengths(tmp_path):
    folder = find_model("all-MiniLM-L6-v2")
    model = load(folder, tmp_path)
    batch = model.embed(MIXED)
    expected = padded_reference(folder, MIXED)
    assert ", packed, " in str(model)
    assert (np.min(batch.tokens), np.max(batch.tokens)) == (2, 256)
    assert cosines(batch.vectors, expected).min() >= 1 - 1e-6
    np.testing.assert_allclose(batch.vectors, expected, atol=2e-6)


@pytest.mark.parametrize(
    "kind", ["Bert", "Roberta", "XLMRoberta", "Camembert", "DistilBert", "Electra"]
)
def test_architecture_is_packed_and_equals_the_padded_reference(kind, tmp_path):
    folder = save_kind(tmp_path / "model", kind)
    model = load(folder, tmp_path)
    batch = model.embed(MIXED)
    assert ", packed, " in str(model), str(model)
    assert batch.tokens.max() == LIMIT
    assert cosines(batch.vectors, padded_reference(folder, MIXED)).min() >= 1 - 1e-6


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_packed_equals_the_padded_reference(layout, tmp_path):
    folder = save_model(tmp_path / "model", **LAYOUTS[layout])
    model = load(folder, tmp_path)
    vectors = model.embed(SENTENCES).vectors
    expected = padded_reference(folder, SENTENCES)
    assert ", packed, " in str(model), str(model)
    assert vectors.shape == expected.shape
    np.testing.assert_allclose(vectors, expected, atol=2e-4, rtol=1e-3)
    assert cosines(vectors, expected).min() >= 1 - 1e-6


@pytest.mark.slow
def test_model_of_an_unknown_architecture_is_padded_and_says_why(tmp_path):
    folder = save_kind(tmp_path / "model", "MPNet")
    model = load(folder, tmp_path)
    vectors = model.embed(MIXED).vectors
    assert "padded, for models of type 'mpnet' are not packed" in str(model)
    assert cosines(vectors, padded_reference(folder, MIXED)).min() >= 1 - 1e-6


def test_model_that_deviates_when_packed_is_padded_and_says_why(tmp_path, monkeypatch):
    folder = save_model(tmp_path / "model", kind="roberta")
    monkeypatch.setattr(
        "resources.embedders.local_model.packed_attention._padding_id_of_positions", lambda _: None
    )
    model = load(folder, tmp_path)
    vectors = model.embed(SENTENCES).vectors
    assert "padded, for packed it failed its self-check" in str(model)
    assert cosines(vectors, padded_reference(folder, SENTENCES)).min() >= 1 - 1e-6


def test_model_in_whose_packed_path_torch_fails_is_padded_and_says_why(tmp_path, monkeypatch):
    def old_gpu(*_: Any) -> None:
        raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")

    folder = save_model(tmp_path / "model")
    monkeypatch.setattr(torch_model.PackedModel, "forward", old_gpu)
    model = load(folder, tmp_path)
    assert "padded, for RuntimeError: FlashAttention only supports Ampere" in str(model)
    assert np.isfinite(model.embed(SENTENCES).vectors).all()


def test_attention_is_never_asked_for_more_than_one_text_at_a_time(tmp_path, monkeypatch):
    import torch

    model = load(save_model(tmp_path / "model"), tmp_path, batch_tokens=10_000)
    sizes = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def recorded(q: Any, k: Any, v: Any) -> Any:
        sizes.append(q.shape[1])
        return attention(q, k, v)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", recorded)
    tokens = model.embed(SENTENCES).tokens
    assert sizes == 2 * sorted(tokens.tolist(), reverse=True)  # two layers


def test_prompts_are_packed_with_their_texts(tmp_path):
    folder = save_model(tmp_path / "model")
    model = load(folder, tmp_path)
    vectors = model.embed(SENTENCES, "a text: ").vectors
    expected = padded_reference(folder, [f"a text: {text}" for text in SENTENCES])
    assert ", packed, " in str(model), str(model)
    assert cosines(vectors, expected).min() >= 1 - 1e-6


# --- narrow types ---------------------------------------------------------------------------------


def test_text_that_overflows_in_a_narrow_type_is_embedded_in_fp32(tmp_path, monkeypatch):
    folder = save_model(tmp_path / "model")
    files = files_of(folder)
    monkeypatch.setitem(MIN_COSINE, "bf16", 0.99)
    model = TorchModel(files, space_of(files, tmp_path), "cpu", "bf16", 600, packed=True)
    forward = torch_model.PackedModel.forward

    def overflows(self: Any, inputs: Any, starts: Any, lengths: np.ndarray) -> Any:
        vectors = forward(self, inputs, starts, lengths).clone()
        vectors[lengths == 48] = float("nan")
        return vectors

    monkeypatch.setattr(torch_model.PackedModel, "forward", overflows)
    batch = model.embed(SENTENCES)
    expected = padded_reference(folder, SENTENCES)
    long = batch.tokens == 48
    assert 2 <= long.sum() < len(SENTENCES)
    assert cosines(batch.vectors[long], expected[long]).min() >= 1 - 1e-6
    assert cosines(batch.vectors, expected).min() >= 0.99


def test_auto_takes_the_first_type_that_holds_the_self_check(tmp_path, monkeypatch):
    folder = save_model(tmp_path / "model")
    files = files_of(folder)
    check, tried = torch_model.check_vectors, []

    def overflowing(precision: str, vectors: np.ndarray, reference: np.ndarray) -> Any:
        tried.append(precision)
        if precision == "fp16":
            vectors = np.full_like(vectors, np.nan)
        return check(precision, vectors, reference)

    monkeypatch.setattr(torch_model, "check_vectors", overflowing)
    monkeypatch.setattr(torch_model, "AUTO", {"cpu": ("fp16", "bf16", "fp32")})
    monkeypatch.setitem(MIN_COSINE, "bf16", 0.99)
    model = TorchModel(files, space_of(files, tmp_path), "cpu", "auto", 600, packed=True)
    assert tried == ["fp16", "fp16", "bf16"]  # packed and padded
    assert "in bf16, packed, " in str(model)
    vectors = model.embed(SENTENCES).vectors
    assert cosines(vectors, padded_reference(folder, SENTENCES)).min() >= 0.99


# --- memory that runs out -------------------------------------------------------------------------


class SmallDevice:
    """Runs out of memory above `limit` tokens; `sizes` are the batches that it was given."""

    def __init__(self) -> None:
        self.limit = 10**9
        self.sizes: list[int] = []


@pytest.fixture
def small_device(monkeypatch) -> SmallDevice:
    import torch

    device, forward = SmallDevice(), torch_model.PackedModel.forward

    def limited(self: Any, inputs: Any, starts: Any, lengths: np.ndarray) -> Any:
        device.sizes.append(int(lengths.sum()))
        if device.sizes[-1] > device.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return forward(self, inputs, starts, lengths)

    monkeypatch.setattr(torch_model.PackedModel, "forward", limited)
    return device


def test_batch_that_does_not_fit_is_halved_and_the_budget_grows_back(tmp_path, small_device):
    folder = save_model(tmp_path / "model")
    model = load(folder, tmp_path, batch_tokens=800)
    expected = padded_reference(folder, SENTENCES)
    small_device.limit = 110
    small_device.sizes.clear()
    np.testing.assert_allclose(model.embed(SENTENCES).vectors, expected, atol=1e-5)
    assert max(small_device.sizes) > 110
    assert 55 <= model._budget.tokens <= 110
    small_device.sizes.clear()
    np.testing.assert_allclose(model.embed(SENTENCES).vectors, expected, atol=1e-5)
    assert max(small_device.sizes) <= 110  # what was learnt holds for the next call

    small_device.limit = 10_000
    for _ in range(200):
        if model._budget.tokens == 800:
            break
        model.embed(SENTENCES)
    assert model._budget.tokens == 800


def test_text_that_alone_does_not_fit_is_blamed_and_others_still_embed(tmp_path, small_device):
    model = load(save_model(tmp_path / "model"), tmp_path, batch_tokens=800)
    expected = model.embed(SENTENCES).vectors
    small_device.limit = 40
    long = [
        row for row, count in enumerate(model._tokens.tokenize(SENTENCES).lengths) if count > 40
    ]
    with pytest.raises(TextOutOfMemoryError, match=r"Text \d+ of 24 \(48 tokens\) alone") as caught:
        model.embed(SENTENCES)
    assert int(str(caught.value).split()[1]) in long
    assert caught.value.__cause__ is None  # its traceback would keep the batch in memory
    short = [row for row in range(len(SENTENCES)) if row not in long]
    for _ in range(IN_FLIGHT):  # no slot was lost
        model.embed([SENTENCES[row] for row in short])
    vectors = model.embed([SENTENCES[row] for row in short]).vectors
    np.testing.assert_allclose(vectors, expected[short], atol=1e-5)


def test_failure_other_than_of_memory_surfaces_and_the_next_call_works(tmp_path, monkeypatch):
    model = load(save_model(tmp_path / "model"), tmp_path, batch_tokens=100)
    forward, calls = torch_model.PackedModel.forward, []

    def breaks(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("an illegal memory access was encountered")
        return forward(*arguments)

    monkeypatch.setattr(torch_model.PackedModel, "forward", breaks)
    for _ in range(IN_FLIGHT + 1):
        calls.clear()
        with pytest.raises(EmbeddingError, match="illegal memory access"):
            model.embed(SENTENCES)
    assert np.isfinite(model.embed(SENTENCES).vectors).all()


def test_no_more_batches_are_in_flight_than_allowed(tmp_path, monkeypatch):
    model = load(save_model(tmp_path / "model"), tmp_path, batch_tokens=50)
    launch, finish = packed_engine.PackedEngine._launch, packed_engine.PackedEngine._finish
    flying, most = [0], [0]

    def launched(*arguments: Any) -> Any:
        flying[0] += 1
        most[0] = max(most[0], flying[0])
        return launch(*arguments)

    def finished(batch: Any) -> Any:
        flying[0] -= 1
        return finish(batch)

    monkeypatch.setattr(packed_engine.PackedEngine, "_launch", launched)
    monkeypatch.setattr(packed_engine.PackedEngine, "_finish", staticmethod(finished))
    model.embed(SENTENCES)
    assert (most[0], flying[0]) == (IN_FLIGHT, 0)


# --- the token budget -----------------------------------------------------------------------------


def test_search_ends_at_the_knee_of_speed():
    def seconds(tokens: int) -> float:
        return 1e-4 + max(tokens, 60_000) / 5e6  # no faster from 60,000 tokens on

    assert search_budget(lambda tokens: 1000 + 10 * tokens, seconds, 10**12) == 65_536


def test_search_stays_within_memory_and_never_tries_more():
    tried = []

    def seconds(tokens: int) -> float:
        tried.append(tokens)
        return 1.0  # larger is always faster

    free = 5_000_000
    found = search_budget(lambda tokens: 100_000 + 100 * tokens, seconds, free)
    assert found == max(tried) == 8 * PROBE_TOKENS
    assert 100_000 + 100 * found <= 0.8 * free < 100_000 + 100 * 2 * found


def test_search_on_a_device_with_hardly_any_memory_gives_what_fits():
    assert search_budget(lambda tokens: 1000 * tokens, lambda _: 1.0, 1_000_000) == 800


def test_budget_is_remembered_by_device_model_and_precision(tmp_path):
    path, searches = tmp_path / "token_budgets.json", []

    def search() -> int:
        searches.append(1)
        return 1000 * len(searches)

    assert remembered_budget(path, "H200, abc, fp16", search) == 1000
    assert remembered_budget(path, "H200, abc, bf16", search) == 2000
    assert remembered_budget(path, "H200, abc, fp16", search) == 1000
    assert json.loads(path.read_text()) == {"H200, abc, fp16": 1000, "H200, abc, bf16": 2000}
    path.write_text("[torn")
    assert remembered_budget(path, "H200, abc, fp16", search) == 3000


def test_budget_that_keeps_failing_when_grown_is_tried_ever_more_rarely():
    budget, failures = TokenBudget(1000), []
    for step in range(40 * PATIENCE):
        if budget.tokens > 500:
            budget.shrink(budget.tokens)
            failures.append(step)
        else:
            budget.succeeded(budget.tokens)
    pauses = np.diff(failures)
    assert len(pauses) >= 3
    assert (pauses[1:] > 1.9 * pauses[:-1]).all()


# --- tokens ---------------------------------------------------------------------------------------


def test_cut_texts_keep_their_special_tokens_on_either_side():
    tokenizer = bert_tokenizer().backend_tokenizer
    texts = ["apples pears", "", "train rates apples pears train", "."]
    whole = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    for side in ("left", "right"):
        tokens = TextTokenizer(tokenizer, 6, side).tokenize(texts)
        for row, content in enumerate(whole):
            kept = content[-4:] if side == "left" else content[:4]
            assert tokens.ids[row].tolist() == [2, *kept, 3]
            assert tokens.truncated[row] == len(content) - len(kept)
    assert positions(np.array([2, 0, 3])).tolist() == [0, 1, 0, 1, 2]

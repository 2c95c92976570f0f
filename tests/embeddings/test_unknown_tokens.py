"""Texts of which the model sees nothing: counted, warned of, refused where nothing is left."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import dagster as dg
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from embedding_assets.embeddings.stream import NO_KNOWN_TOKEN
from resources.embedders.base import EmbeddingBatch, Role
from resources.embedders.local_model.token_batches import TextTokenizer
from resources.errors import InvalidInputError
from tests.support.fakes import CountingEmbedder
from tests.support.pipeline import Pipeline, checks, numbers, write_jsonl

THAI = "เรือข้ามฟากออกจากท่าเรือ"
PLAIN = {"partitions": {"by": "bucket", "count": 1}, "chunking": {"context": "none"}}


class KnowsAscii(CountingEmbedder):
    """Knows words of ASCII alone."""

    def embed(self, texts: Sequence[str], role: Role = "document") -> EmbeddingBatch:
        known = [[word.isascii() for word in text.split()] for text in texts]
        return replace(
            super().embed(texts, role),
            unknown_tokens=np.array([len(words) - sum(words) for words in known], np.int32),
            known_tokens=np.array([sum(words) for words in known], np.int32),
        )


def _pipeline(tmp_path: Path, *texts: str) -> Pipeline:
    records = [{"id": f"d{i}", "text": text} for i, text in enumerate(texts)]
    source = str(write_jsonl(tmp_path / "a.jsonl", records))
    return Pipeline(tmp_path, source, embedder=KnowsAscii(), settings=dict(PLAIN))


def test_a_text_without_a_known_token_is_refused_and_others_are_counted_and_warned_of(
    tmp_path: Path,
) -> None:
    pipeline = _pipeline(tmp_path, "one two three", f"{THAI} {THAI} ferry", THAI)
    result = pipeline.run()
    assert {row["document_id"] for row in pipeline.rows()} == {"d0", "d1"}
    [refused] = pipeline.embedding_quarantine()
    assert (refused["document_id"], refused["reason"]) == ("d2", NO_KNOWN_TOKEN)
    assert "the model knows no token of the text (1 are unknown to it)" in refused["detail"]
    assert numbers(result, "embeddings")["tokens_unknown"] == 3
    [check] = [
        each for each in result.get_asset_check_evaluations() if each.check_name == "unknown_tokens"
    ]
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "checks.max_unknown_tokens" in (check.description or "")
    assert checks(result)["completeness"]


def test_few_unknown_tokens_are_counted_without_a_warning(tmp_path: Path) -> None:
    result = _pipeline(tmp_path, "word " * 50 + THAI).run()
    assert numbers(result, "embeddings")["tokens_unknown"] == 1
    assert checks(result)["unknown_tokens"]


def test_a_question_without_a_known_token_is_refused_with_a_sentence(tmp_path: Path) -> None:
    pipeline = _pipeline(tmp_path, "one two three")
    pipeline.run()
    for _ in range(2):
        with pytest.raises(InvalidInputError, match="knows no token of 'เรือ"):
            pipeline.opened.search(THAI)
    assert pipeline.opened.search("one")[0].document_id == "d0"


def _word_piece() -> Tokenizer:
    vocabulary = {"[UNK]": 0, "a": 1, "ferry": 2, "query": 3}
    return Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # type: ignore[call-arg]


def _sentence_piece() -> Tokenizer:
    pieces = [("<unk>", 0.0), ("▁", -1.0), ("▁a", -1.0), ("▁ferry", -1.0), ("▁query", -1.0)]
    return Tokenizer(models.Unigram(pieces, unk_id=0))


@pytest.mark.parametrize("model", [_word_piece, _sentence_piece])
@pytest.mark.parametrize("side", ["left", "right"])
def test_known_and_unknown_tokens_are_those_of_the_text_itself(model: object, side: str) -> None:
    tokenizer: Tokenizer = model()  # type: ignore[operator]
    tokenizer.pre_tokenizer = (  # type: ignore[assignment]
        pre_tokenizers.Metaspace() if model is _sentence_piece else pre_tokenizers.Whitespace()
    )
    found = TextTokenizer(tokenizer, 16, side).tokenize(
        ["a ferry", "ferry ท่า", "ท่า ท่า", "", "a"], prompt="query "
    )
    assert found.known is not None
    assert found.unknown is not None
    assert found.known.tolist() == [2, 1, 0, 0, 1]
    assert (found.unknown > 0).tolist() == [False, True, True, False, False]

"""The identity of vectors: stable where nothing changes them, new where something does."""

import dataclasses
import json
import subprocess
import sys

import pytest

from resources.identity.embedding_space import EmbeddingSpace, canonical_json

SPACE = EmbeddingSpace(
    provider="sentence-transformers",
    model="some/model",
    weights="ab" * 32,
    dimension=384,
    max_tokens=256,
    normalized=True,
    details=canonical_json({"pooling": ["mean"], "prompt": "größe: ", "eps": 1e-12}),
)


def test_id_is_the_one_that_stored_vectors_carry():
    # If this fails, every vector stored so far would be embedded again.
    assert SPACE.id == "f3049e9c0ae9e57f"


def test_id_is_the_same_in_another_process():
    program = (
        "import sys; from resources.identity.embedding_space import EmbeddingSpace;"
        "print(EmbeddingSpace.from_json(sys.argv[1]).id)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, SPACE.to_json()], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == SPACE.id


def test_json_round_trip_keeps_everything():
    again = EmbeddingSpace.from_json(SPACE.to_json())
    assert again == SPACE
    assert again.id == SPACE.id


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("provider", "openai"),
        ("weights", "cd" * 32),
        ("dimension", 128),
        ("max_tokens", 128),
        ("normalized", False),
        ("details", '{"pooling":["cls"]}'),
    ],
)
def test_id_changes_with_all_that_changes_vectors(field, value):
    assert dataclasses.replace(SPACE, **{field: value}).id != SPACE.id


def test_name_is_no_part_of_the_id_where_the_weights_are_known():
    assert dataclasses.replace(SPACE, model="copy/of-model").id == SPACE.id


def test_name_is_part_of_the_id_where_the_weights_are_unknown():
    hosted = dataclasses.replace(SPACE, weights="")
    assert dataclasses.replace(hosted, model="other").id != hosted.id


def test_order_and_spacing_of_details_do_not_matter():
    details = json.dumps(dict(reversed(json.loads(SPACE.details).items())), indent=4)
    assert dataclasses.replace(SPACE, details=details) == SPACE


@pytest.mark.parametrize("text", ["", "[]", "null", '{"provider": "x"}', '{"unknown": 1}'])
def test_what_is_no_space_is_refused_with_the_text(text):
    with pytest.raises(ValueError, match="Not an embedding space"):
        EmbeddingSpace.from_json(text)

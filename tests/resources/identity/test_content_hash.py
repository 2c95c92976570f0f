"""Keys follow from content: equal content, equal key; and no key changes by accident."""

import hashlib
import json
import unicodedata

import pytest

from resources.identity.content_hash import (
    HASH_BYTES,
    canonical_text,
    chunk_id,
    content_hash,
    digest,
    document_version,
    query_hash,
)
from tests.support.data import HOSTILE

STRINGS = [
    "",
    " ",
    "\r",
    "\r\n\r\n",
    "\ufeff",
    "\ufeff \ufeff",
    " \ufeff\r\n text \u00a0\u2003\u3000",
    "a\r\nb\rc\nd\r\r\n",
    "e\u0301\u0323",
    "\u212b\u2126\ufb01",
    "\u1100\u1161\u11a8",
    "\x00\x01\x1f \x85 \u2028 \u2029",
    "a\ufeff\u0301",
    "\u200b\u200b",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\u0344\u0958\u2adc",
    "\ufeff\u0301 \ufeff",
]


@pytest.mark.parametrize("text", STRINGS)
def test_canonical_text_is_idempotent_and_the_same_for_every_unicode_form(text):
    assert_canonical(text)


def test_canonical_text_is_idempotent_on_the_big_list_of_naughty_strings():
    strings = json.loads((HOSTILE / "blns.json").read_text(encoding="utf-8"))
    assert len(strings) > 400
    for text in strings:
        assert_canonical(text)


def assert_canonical(text: str) -> None:
    canonical = canonical_text(text)
    assert canonical_text(canonical) == canonical
    assert canonical_text(unicodedata.normalize("NFC", text)) == canonical
    assert canonical_text(unicodedata.normalize("NFD", text)) == canonical
    assert unicodedata.is_normalized("NFC", canonical)
    assert canonical == canonical.strip()
    assert not set(canonical) & {"\r", "\ufeff"}
    assert content_hash(canonical) == content_hash(
        canonical_text(unicodedata.normalize("NFD", text))
    )


def test_canonical_text_changes_line_endings_marks_and_outer_white_space_only():
    assert canonical_text("\ufeff  a\r\n\r b \ufeff\tc\n\n") == "a\n\n b \tc"
    assert canonical_text("ﬁ ½ A\u030a") == "ﬁ ½ Å"  # NFC, not NFKC
    assert canonical_text("inner  spaces\n\n\nstay") == "inner  spaces\n\n\nstay"
    assert canonical_text("a\x00b") == "a\x00b"


def test_digest_tells_apart_what_only_concatenates_to_the_same():
    parts = [("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ("", "abc"), ("a", "b", "c"), ()]
    assert len({digest(*p) for p in parts}) == len(parts)
    assert digest("a", "\x01\0\0\0\0\0\0\0b") != digest("a", "b")


def test_digest_is_blake2b_over_length_prefixed_utf_8():
    expected = hashlib.blake2b(
        b"\x03\0\0\0\0\0\0\0a\xc3\xa9" + b"\0\0\0\0\0\0\0\0", digest_size=HASH_BYTES
    )
    assert digest("aé", "") == expected.digest()


def test_a_lone_surrogate_is_refused():
    with pytest.raises(UnicodeEncodeError):
        digest("\ud800")


def test_keys_of_different_purposes_differ_for_the_same_text():
    assert len({content_hash("x"), query_hash("x"), digest("x"), digest("chunk", "x")}) == 4


def test_each_part_of_a_document_changes_its_version():
    base = ("title", "text", "2020", "{}")
    versions = {document_version(*base)}
    for i in range(4):
        versions.add(document_version(*(p + "x" if i == j else p for j, p in enumerate(base))))
    versions.add(document_version("text", "title", "2020", "{}"))
    assert len(versions) == 6


def test_collection_document_and_number_each_change_a_chunk_id():
    ids = {
        chunk_id("c", "d", 0), chunk_id("c", "d", 1), chunk_id("c", "e", 0),
        chunk_id("e", "d", 0), chunk_id("c", "d0", 1), chunk_id("c", "d", 10),
    }  # fmt: skip
    assert len(ids) == 6


def test_keys_are_those_that_stored_rows_carry():
    # If this fails, every text cached so far would be embedded, and every row written, again.
    assert digest().hex() == "3345524abf6bbe1809449224b5972c41790b6cf2"
    assert content_hash("Größe: 日本語\n🙂").hex() == "ed20358e5cc084bb0fd14bf738d3f16a68e8af0d"
    assert query_hash("Größe: 日本語\n🙂").hex() == "c35e435551bf176ae203ae7786c19bc55b57f7a8"
    assert chunk_id("peps", "pep-0008", 3) == "e7d70583ef4213d18abbc4627a1f44775bfef9e7"
    version = document_version("Title", "Text.", "2020-01-01T00:00:00+00:00", '{"a":1}')
    assert version.hex() == "0dbd75a3289d89269c6b1b6c91fb60521347b08c"

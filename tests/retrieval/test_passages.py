"""The part of a chunk that people are shown, and the chunks that they are not shown first."""

import pytest

from embedding_assets.retrieval.passages import Excerpts, is_apparatus

REFERENCES = """\
References
==========

.. [1] Shadow Password Support Module
       https://bugs.python.org/issue579435

[2] PyErr_Warn may cause import deadlock
    https://bugs.python.org/issue683658
"""
HEADER = (
    "PEP: 279\nTitle: The enumerate() built-in function\nAuthor: R. H. <a@b.org>\nType: Process"
)
LICENCE = "Copyright\n=========\n\nThis document has been placed in the public domain."
LINKS = "## Links\n\n- [Home](https://example.org/)\n- [Docs](https://example.org/docs)\n"
STORY = "The keeper lit the lamp. A ship passed in the night (see [1]). Nobody saw it."
CODE = "def add(a, b):\n    return a + b  # the sum\n\n>>> add(1, 2)\n3"
DOCTEST = '>>> def f(x):\n...     return x\n... \n>>> f("a")'
TASKS = "- [x] buy milk for the cat\n- [ ] call the plumber about the tap\n"


@pytest.mark.parametrize("text", [REFERENCES, HEADER, LICENCE, LINKS])
def test_references_headers_licences_and_links_are_apparatus(text: str) -> None:
    assert is_apparatus(text)


@pytest.mark.parametrize(
    "text", [STORY, CODE, DOCTEST, TASKS, "ok", "", f"{HEADER}\n\nAbstract\n\n{STORY * 4}"]
)
def test_prose_code_and_lists_are_not(text: str) -> None:
    assert not is_apparatus(text)


def excerpt(question: str, text: str, length: int = 60) -> str:
    return Excerpts(question, [text, "Some other text."]).of(text, length)


def test_whole_sentences_around_the_best_part_are_shown() -> None:
    text = (
        "It rains. Nobody is out. The lighthouse keeper counts umbrellas. He is done. Good night."
    )
    assert excerpt("Who counted the umbrella?", text) == (
        "… Nobody is out. The lighthouse keeper counts umbrellas. …"
    )
    assert excerpt("anything else", text) == "It rains. Nobody is out. …"
    assert excerpt("anything else", text, 500) == text


def test_a_word_that_stands_everywhere_says_little() -> None:
    text = "How how it is done is told. Umbrellas are counted. How it goes on is told."
    found = Excerpts("How are umbrellas counted", [text, "How so.", "How, then?", "That is how."])
    assert found.of(text, 25) == "… Umbrellas are counted. …"


def test_headings_and_headers_are_left_out_and_lines_flow_but_those_of_code() -> None:
    text = (
        f"{HEADER}\n\nAbstract\n========\n\nThis adds a function\nto count\nthings.\n\n"
        "* One is\n  the first.\n* Two::\n\n    for i in x:\n        print(i)\n"
    )
    assert excerpt("count", text, 500) == (
        "… This adds a function to count things.\n* One is the first.\n* Two::\n"
        "    for i in x:\n        print(i)"
    )
    code = "Text.\n\n    def f():\n        return 1"
    assert excerpt("return", code, 30) == "… def f():\n    return 1"


def test_a_sentence_that_is_too_long_is_cut_between_words() -> None:
    assert excerpt("x", "one two three four five six seven", 20) == "one two three four …"
    assert excerpt("x", "", 20) == ""
    assert len(excerpt("x", "y" * 500, 20)) <= 22


def test_scripts_without_blanks_have_sentences_too() -> None:
    assert excerpt("猫", "犬が吠える。猫が眠る。鳥が歌う。", 6) == "… 猫が眠る。 …"

"""Section titles in Markdown and reStructuredText."""

import re
from typing import NamedTuple

# Searched in "\n" + text: a pattern that begins with a literal is found at memory speed.
_HEADING = re.compile(
    r"""\n(?:
      [ ]{0,3} (?P<fence>```) (?!`*[^`\n]+`)
    | (?P<hashes>\#{1,6}) [ \t]+ (?P<atx>\S[^\n]*)
    | (?P<over>(?P<o>[=\-~^"'`\#*+.:_]) (?P=o){2,}) [ \t]* \n
      [ \t]* (?P<overlined>\S[^\n]*) \n (?P=over) [ \t]* (?=\n|\Z)
    | (?<!\S\n) (?P<underlined>\S[^\n]*) \n
      (?P<under>(?P<u>[=\-~^"'`\#*+.:_]) (?P=u){2,}) [ \t]* (?=\n|\Z)
    )""",
    re.VERBOSE,
)


class Heading(NamedTuple):
    """A section title in a document."""

    start: int
    end: int
    level: int
    """1 is the outermost."""
    title: str


def find_headings(text: str) -> list[Heading]:
    """Section titles: Markdown `#`, and titles underlined (and overlined) as in reStructuredText.

    As in reStructuredText, the first style of underlining in a document is its outermost level, the
    second the next, and so on. What looks like a title within a fenced code block is none.

    Args:
        text: canonical text (line feeds only).

    Returns:
        The headings in the order of the text; spans do not overlap.
    """
    found: list[Heading] = []
    styles: list[str] = []
    in_fence = False
    for match in _HEADING.finditer("\n" + text):
        if match["fence"] or match["under"] == "```":
            in_fence = not in_fence
            continue
        if in_fence:
            continue
        if match["hashes"]:
            level, title = len(match["hashes"]), _without_closing_hashes(match["atx"])
        else:
            title = (match["overlined"] or match["underlined"]).rstrip()
            line, style = (
                (match["over"], "overlined " + match["o"])
                if match["over"]
                else (match["under"], match["u"])
            )
            # Only Markdown's underlines (= and -) may be shorter than the title.
            if (len(line) < len(title) and style not in "=-") or line == "...":
                continue
            if style not in styles:
                styles.append(style)
            level = styles.index(style) + 1
        if any(map(str.isalnum, title)):
            found.append(Heading(match.start(), match.end() - 1, level, title))
    return found


def _without_closing_hashes(title: str) -> str:
    title = title.rstrip(" \t")
    bare = title.rstrip("#")
    return bare.rstrip(" \t") if bare.endswith((" ", "\t")) else title

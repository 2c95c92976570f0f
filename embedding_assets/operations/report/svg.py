"""Pictures as SVG: sharp at any size, light or dark as the reader's page is, letters of any script.

No plotting library: to import one takes most of the time that a report may take, its pictures have
one background and one font, and two thousand points are twice as large as Dagster's event log
should keep.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

SERIES = "var(--c4)"
LIMIT = "var(--c5)"
REPEATED = "var(--soft)"
CATEGORIES = tuple(f"var(--c{number})" for number in range(7))
"""One palette, that of Okabe and Ito, which colour-blind readers tell apart; on white paper
its yellow is darkened to brown, as it would hardly be seen."""

STYLE = """\
:root{--paper:#fff;--ink:#1b2130;--soft:#5b6474;--grid:#e4e7ed;--c0:#e69f00;--c1:#56b4e9;\
--c2:#009e73;--c3:#5c4a00;--c4:#0072b2;--c5:#d55e00;--c6:#cc79a7}
@media(prefers-color-scheme:dark){:root{--paper:#14171e;--ink:#e9ecf2;--soft:#a0a9b8;\
--grid:#2c313c;--c1:#8fd3f7;--c3:#f0e442;--c4:#2f74c8;--c5:#e8622c}}
text{font:11px system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif;fill:var(--soft)}
text.head{font-size:13px;font-weight:600;fill:var(--ink)}
text.label{font-size:13px;font-weight:600;fill:var(--ink);stroke:var(--paper);stroke-width:4px;\
stroke-linejoin:round;paint-order:stroke}
text.badge{font-weight:600;fill:var(--paper)}
"""
SIZES = {"": 11, "head": 13, "label": 13, "badge": 11}
"""Height of the letters of each class of text, in pixels."""

Place = tuple[float, float]

_MARGIN = 20

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def readable(text: str) -> str:
    """On one line, and without the characters that no SVG or HTML file may have."""
    return " ".join(_NOT_XML.sub("\ufffd", text).split())


@dataclass(frozen=True)
class Scale:
    """Where a number is drawn: `low` at `start`, `high` at `end`, in pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / ((self.high - self.low) or 1)
        return self.start + share * (self.end - self.start)


class Drawing:
    """Shapes and texts, from the back to the front."""

    def __init__(self, width: float, height: float, description: str) -> None:
        self.width = width
        self.height = height
        self.description = description
        self._parts: list[str] = []

    def line(self, places: Sequence[Place], colour: str, style: str = "") -> None:
        """A line through places; `style` are further attributes."""
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        self._parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" {style}/>')

    def dots(self, places: Iterable[Place], colour: str, size: float) -> None:
        """Round dots; a few letters each, however many they are."""
        path = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in places)
        if path:
            style = f'stroke-width="{size:g}" stroke-linecap="round"'
            self._parts.append(f'<path d="{path}" stroke="{colour}" {style}/>')

    def dot(self, place: Place, colour: str, size: float, hint: str = "") -> None:
        """One dot; in a page, `hint` is shown under the mouse."""
        (x, y), radius = place, size / 2
        inside = f"<title>{escape(readable(hint))}</title>" if hint else ""
        self._parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{colour}">{inside}</circle>'
        )

    def bar(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        self._parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
            f'rx="1" fill="{colour}"/>'
        )

    def text(self, x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> None:
        """One line of text, its letters standing on `y`.

        Args:
            x: of its start, middle or end, as `anchor` says.
            y: of the line that its letters stand on.
            text: anything.
            kind: one of `SIZES`.
            anchor: `start`, `middle` or `end`.
        """
        shown = escape(readable(text))
        self._parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{shown}</text>'
        )

    def inline(self) -> str:
        """For a page that has `STYLE`, on the paper of that page."""
        return self._element(0, "")

    def image(self) -> str:
        """For an image, on paper of its own: it is read on a page of any colour."""
        width, height = self.width + 2 * _MARGIN, self.height + 2 * _MARGIN
        return self._element(
            _MARGIN,
            f'<style>{STYLE}</style><rect x="{-_MARGIN}" y="{-_MARGIN}" width="{width:g}" '
            f'height="{height:g}" rx="8" fill="var(--paper)"/>',
        )

    def _element(self, margin: int, below: str) -> str:
        width, height = self.width + 2 * margin, self.height + 2 * margin
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width:g}" '
            f'height="{self.width * height / width:.0f}" '
            f'viewBox="{-margin} {-margin} {width:g} {height:g}" role="img" '
            f"aria-label={quoteattr(self.description)}>{below}{''.join(self._parts)}</svg>"
        )


def text_width(text: str, size: float) -> float:
    """How wide a line of text is in pixels, at most, in the fonts that browsers take for it."""
    return size * sum(map(_letter_width, text))


def _letter_width(letter: str) -> float:
    if unicodedata.combining(letter):
        return 0.0
    if unicodedata.east_asian_width(letter) in "WF":
        return 1.0
    if letter in "mwMW@%":
        return 1.0
    if letter in "iljtfrI.,:;'|!()[] ":
        return 0.42
    return 0.78 if letter.isupper() else 0.66


def fitting(text: str, size: float, width: float) -> str:
    """As much of a text as fits, with an ellipsis if that is not all."""
    text = readable(text)
    if text_width(text, size) <= width:
        return text
    while text and text_width(text + "…", size) > width:
        text = text[:-1]
    return f"{text.rstrip()}…"

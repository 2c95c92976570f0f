"""The page that a report is: Markdown for Dagster, and an HTML file that needs nothing else."""

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

from embedding_assets.operations.report.svg import STYLE, Drawing, readable

_CELL = 160
"""Letters of a table's cell at most."""


@dataclass(frozen=True)
class Quote:
    """Some words of a document."""

    title: str
    text: str


Cell = str | Quote


@dataclass(frozen=True)
class Table:
    """Rows of texts; the columns in `numbers` (counted from 0) stand to the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numbers: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Section:
    """A picture, what is to be said of it, and a table, as far as there are any."""

    title: str
    text: str = ""
    picture: Drawing | None = None
    hinted: Drawing | None = None
    """The picture with hints, which only the file shows."""
    table: Table | None = None


@dataclass(frozen=True)
class Page:
    """All of a report. No text is trusted: most of it comes from documents."""

    title: str
    about: str
    figures: Sequence[tuple[str, str]]
    sections: Sequence[Section]

    def markdown(self) -> str:
        """With its pictures inside, as Dagster's metadata shows them."""
        parts = [f"# {_plain(self.title)}", _plain(self.about)]
        parts.append(_markdown_table(Table(("", ""), self.figures)))
        for section in self.sections:
            parts.append(f"## {_plain(section.title)}")
            if section.picture:
                data = base64.b64encode(section.picture.image().encode()).decode()
                parts.append(
                    f"![{_plain(section.picture.description)}](data:image/svg+xml;base64,{data})"
                )
            if section.text:
                parts.append(_plain(section.text))
            if section.table:
                parts.append(_markdown_table(section.table))
        return "\n\n".join(parts)

    def html(self) -> str:
        """A file that loads nothing from elsewhere, and could not if a text asked for it."""
        figures = "".join(
            f"<div><dd>{_safe(value)}</dd><dt>{_safe(name)}</dt></div>"
            for name, value in self.figures
        )
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
            "style-src 'unsafe-inline'\">"
            '<meta name="viewport" content="width=device-width">'
            '<meta name="color-scheme" content="light dark">'
            f"<title>{_safe(self.title)}</title><style>{STYLE}{_PAGE_STYLE}</style></head><body>"
            f"<header><h1>{_safe(self.title)}</h1><p>{_safe(self.about)}</p></header>"
            f"<dl>{figures}</dl>{''.join(map(_html_section, self.sections))}</body></html>\n"
        )


def _html_section(section: Section) -> str:
    text = f"<p>{_safe(section.text)}</p>" if section.text else ""
    drawing = section.hinted or section.picture
    picture = drawing.inline() if drawing else ""
    table = _html_table(section.table) if section.table else ""
    return f"<section><h2>{_safe(section.title)}</h2>{picture}{text}{table}</section>\n"


def _html_table(table: Table) -> str:
    def row(cells: Sequence[Cell], tag: str) -> str:
        inside = (
            f'<{tag} dir="auto"{side}>{_html_cell(cell)}</{tag}>'
            for side, cell in zip(sides, cells, strict=True)
        )
        return f"<tr>{''.join(inside)}</tr>"

    sides = [' class="number"' if n in table.numbers else "" for n in range(len(table.columns))]
    rows = "".join(row(cells, "td") for cells in table.rows)
    return f"<table><thead>{row(table.columns, 'th')}</thead><tbody>{rows}</tbody></table>"


def _html_cell(cell: Cell) -> str:
    if isinstance(cell, Quote):
        return f"<b>{_safe(_short(cell.title))}</b> {_safe(_short(_prose(cell.text)))}"
    return _safe(_short(cell))


def _markdown_table(table: Table) -> str:
    sides = ["--:" if n in table.numbers else "---" for n in range(len(table.columns))]
    rows = (table.columns, *table.rows)
    head, *body = (f"| {' | '.join(map(_markdown_cell, row))} |" for row in rows)
    return "\n".join([head, f"| {' | '.join(sides)} |", *body])


def _markdown_cell(cell: Cell) -> str:
    if isinstance(cell, Quote):
        return f"**{_plain(_short(cell.title))}** {_plain(_short(_prose(cell.text)))}"
    return _plain(_short(cell))


_RULE = re.compile(r"([^\w\s])\1{3,}")
_MARKUP = re.compile(r"([\\`*_{}\[\]<>|#~!&$])")


def _plain(text: str) -> str:
    """What Markdown shows as it is, on one line."""
    return _MARKUP.sub(r"\\\1", readable(text))


def _safe(text: str) -> str:
    """What HTML shows as it is, on one line."""
    return html.escape(readable(text))


def _prose(text: str) -> str:
    """Without the lines that underline headings and draw tables."""
    return _RULE.sub(" ", text)


def _short(text: str) -> str:
    text = readable(text)
    return text if len(text) <= _CELL else f"{text[: _CELL - 1]}…"


_PAGE_STYLE = """
body{margin:2.5rem auto;max-width:960px;padding:0 1rem;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif}
b{font-weight:600}
h1{font-size:2rem;line-height:1.2;margin:0}
header p,section p,dt,th{color:var(--soft)}
header p{margin:.3rem 0 0}
h2{font-size:1.25rem;margin:3rem 0 .8rem}
svg{display:block;max-width:100%;height:auto}
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(130px,1fr));gap:1.2rem;margin:2rem 0}
dd{margin:0;font-size:1.15rem;font-weight:600;white-space:nowrap}
dt{font-size:.85rem}
dl div{border-top:2px solid var(--grid);padding-top:.5rem}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{text-align:start;vertical-align:top;padding:.4rem .8rem .4rem 0;overflow-wrap:anywhere}
td:not(:empty){border-top:1px solid var(--grid)}
th{font-weight:500;white-space:nowrap}
.number{text-align:end;white-space:nowrap}
"""

"""Two growing and changing archives as files, and what they hold as a dictionary: the truth."""

import json
import random
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from tests.support.data import snapshot

_USUAL_SIZE = 70
_LEAST_SHARE_KEPT = 0.8
"""Of the documents of a file at least this share stays in a round: else deletions are withheld."""
_MOST_DELETED = 8
"""In one round, for the same reason."""


@dataclass(frozen=True)
class Entry:
    """A document as it should be stored; without paragraphs it should be refused.

    Attributes:
        title: its title.
        paragraphs: its text.
        day: its own time.
        tag: a field of its metadata.
        file: where it stands.
    """

    title: str
    paragraphs: tuple[str, ...]
    day: date
    tag: int
    file: str

    @property
    def text(self) -> str:
        return "\n\n".join(self.paragraphs)


def real_paragraphs() -> list[str]:
    """Paragraphs of real proposals, of which the archives' documents are made."""
    found = {
        " ".join(paragraph.split()): None
        for record in snapshot("2026-08-22")
        for paragraph in str(record["text"]).split("\n\n")
    }
    return [
        one
        for one in found
        if 80 < len(one) < 900 and one[0].isalpha() and unicodedata.is_normalized("NFC", one)
    ]


@dataclass
class Archive(ABC):
    """One collection's source.

    Attributes:
        folder: of its files.
        paragraphs: of which texts are made; several documents, also of other archives, share some.
        entries: what it holds now, by id.
        withheld: what should stay in the index though the archive no longer has it.
    """

    folder: Path
    paragraphs: Sequence[str]
    random: random.Random
    entries: dict[str, Entry] = field(default_factory=dict)
    withheld: dict[str, Entry] = field(default_factory=dict)
    edits: Counter[str] = field(default_factory=Counter)
    _removed: list[tuple[str, Entry]] = field(default_factory=list)
    _made: int = 0
    _size_before: Counter[str] = field(default_factory=Counter)
    _gone: Counter[str] = field(default_factory=Counter)

    name = ""

    @property
    @abstractmethod
    def attributes(self) -> dict[str, Any]:
        """Its collection's YAML."""

    @property
    @abstractmethod
    def partitions(self) -> str:
        """All of them, as FIRST...LAST."""

    @abstractmethod
    def partitions_of(self, entry: Entry) -> list[str]:
        """Where an entry may be."""

    @abstractmethod
    def files(self) -> dict[str, str]:
        """What should be in each file."""

    @abstractmethod
    def group(self, entry: Entry) -> str:
        """What may be deleted as a whole by mistake: a file, or a month."""

    @abstractmethod
    def new_id(self) -> str: ...

    @abstractmethod
    def moved(self, entry: Entry) -> Entry:
        """The same document at another place in the archive."""

    @property
    def stored(self) -> dict[str, Entry]:
        """What should be in the index."""
        return self.withheld | {id: one for id, one in self.entries.items() if one.paragraphs}

    @property
    def refused(self) -> set[str]:
        """What should be in the quarantine."""
        return {id for id, one in self.entries.items() if not one.paragraphs}

    def write(self) -> None:
        """Brings the files up to date; those that are as they should be are not touched."""
        wanted = self.files()
        for path in [*self.folder.rglob("*")]:
            if path.is_file() and str(path.relative_to(self.folder)) not in wanted:
                path.unlink()
        for name, content in wanted.items():
            path = self.folder / name
            if not path.exists() or path.read_text() != content:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content)

    def fill(self) -> None:
        """The first documents."""
        for _ in range(_USUAL_SIZE):
            self._add()
        self.write()

    def begin_round(self) -> None:
        """What is deleted from here on counts together."""
        self._size_before = Counter(one.file for one in self.entries.values())
        self._gone = Counter()

    def edit(self) -> None:
        """Some of everything that happens to an archive, within what may go by itself."""
        kinds: list[tuple[Callable[[], str], int]] = [
            (self._add, self.random.randint(2, 5) + max(0, _USUAL_SIZE - len(self.entries)) // 4),
            (self._change_text, self.random.randint(2, 6)),
            (self._change_title, self.random.randint(0, 2)),
            (self._change_tag, self.random.randint(0, 3)),
            (self._move, self.random.randint(1, 4)),
            (self._rename, self.random.randint(0, 2)),
            (self._refuse, self.random.randint(0, 1)),
            (self._delete, self.random.randint(1, 3)),
            (self._bring_back, self.random.randint(0, 2)),
            (self._reorder, self.random.randint(0, 1)),
        ]
        self.random.shuffle(kinds)
        for kind, times in kinds:
            for _ in range(times):
                self.edits[kind()] += 1
        self.write()

    def delete_too_many(self) -> set[str]:
        """Deletes a whole file or month, so that it should be withheld; returns the ids."""
        sizes = Counter(self.group(one) for one in self.entries.values() if one.paragraphs)
        group, size = sizes.most_common(1)[0]
        assert size > 10, "too few to be withheld"
        gone = {id for id, one in self.entries.items() if self.group(one) == group}
        for id in gone:
            entry = self.entries.pop(id)
            if entry.paragraphs:
                self.withheld[id] = entry
        self.edits["deleted, too many"] += len(gone)
        self.write()
        return gone

    def accept(self) -> None:
        """What is withheld may go."""
        self.withheld = {}

    def _add(self) -> str:
        entry = Entry(
            title=f"Note {self._made} on {self.random.choice(self.paragraphs)[:30].strip()}",
            paragraphs=tuple(self.random.sample(self.paragraphs, self.random.randint(1, 6))),
            day=date.today() - timedelta(days=self.random.randint(0, 150)),
            tag=self.random.randint(0, 9),
            file="",
        )
        self.entries[self.new_id()] = self.moved(entry)
        return "added"

    def _change_text(self) -> str:
        id, entry = self._any()
        paragraphs = [*entry.paragraphs] or [self.random.choice(self.paragraphs)]
        place = self.random.randrange(len(paragraphs))
        if self.random.random() < 0.5:
            paragraphs[place] += f" Amended for the {self._next()}th time."
        elif self.random.random() < 0.5 or len(paragraphs) == 1:
            paragraphs.insert(place, self.random.choice(self.paragraphs))
        else:
            del paragraphs[place]
        self.entries[id] = replace(entry, paragraphs=tuple(paragraphs))
        return "changed: text"

    def _change_title(self) -> str:
        id, entry = self._any()
        self.entries[id] = replace(entry, title=f"{entry.title[:40]} (edition {self._next()})")
        return "changed: title"

    def _change_tag(self) -> str:
        id, entry = self._any()
        self.entries[id] = replace(entry, tag=self._next())
        return "changed: metadata"

    def _move(self) -> str:
        id, entry = self._any()
        self.entries[id] = self.moved(entry)
        return "moved"

    def _rename(self) -> str:
        id, entry = self._any()
        if not self._may_go(entry):
            return "kept"
        del self.entries[id]
        self.entries[self.new_id()] = entry
        return "renamed"

    def _refuse(self) -> str:
        id, entry = self._any()
        if not self._may_go(entry):
            return "kept"
        self.entries[id] = replace(entry, paragraphs=())
        return "emptied"

    def _delete(self) -> str:
        id, entry = self._any()
        if not self._may_go(entry):
            return "kept"
        del self.entries[id]
        self._removed.append((id, entry))
        return "deleted"

    def _bring_back(self) -> str:
        if not self._removed:
            return "kept"
        id, entry = self._removed.pop(self.random.randrange(len(self._removed)))
        self.entries.setdefault(id, entry)
        return "brought back"

    def _reorder(self) -> str:
        entries = [*self.entries.items()]
        self.random.shuffle(entries)
        self.entries = dict(entries)
        return "reordered"

    def _may_go(self, entry: Entry) -> bool:
        allowed = max(1, int((1 - _LEAST_SHARE_KEPT) * self._size_before[entry.file]))
        if self._gone[entry.file] >= allowed or self._gone.total() >= _MOST_DELETED:
            return False
        self._gone[entry.file] += 1
        return True

    def _any(self) -> tuple[str, Entry]:
        return self.random.choice([*self.entries.items()])

    def _next(self) -> int:
        self._made += 1
        return self._made


class Tickets(Archive):
    """JSON Lines, undated, by bucket."""

    name = "tickets"
    _FILES = ("open.jsonl", "closed.jsonl", "old/2020.jsonl", "old/2021.jsonl")

    @property
    def attributes(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "source": {"path": str(self.folder / "**/*.jsonl")},
            "partitions": {"by": "bucket", "count": 4},
            "embedder": {"flush_size": 64},
        }

    @property
    def partitions(self) -> str:
        return "bucket_0...bucket_3"

    def partitions_of(self, entry: Entry) -> list[str]:
        del entry
        return [f"bucket_{number}" for number in range(4)]

    def files(self) -> dict[str, str]:
        lines: dict[str, list[str]] = {}
        for id, one in self.entries.items():
            record = {"id": id, "title": one.title, "text": one.text, "tag": one.tag}
            lines.setdefault(one.file, []).append(json.dumps(record, ensure_ascii=False))
        return {name: "\n".join(some) + "\n" for name, some in lines.items()}

    def group(self, entry: Entry) -> str:
        return entry.file

    def new_id(self) -> str:
        return f"ticket/{self._next()}"

    def moved(self, entry: Entry) -> Entry:
        return replace(entry, file=self.random.choice(self._FILES))


class Notes(Archive):
    """A folder of Markdown files with front matter, by month."""

    name = "notes"

    @property
    def attributes(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "source": {"path": f"{self.folder}/", "fields": {"timestamp": "created"}},
            "partitions": {"by": "month", "start": f"{self._first:%Y-%m-%d}"},
            "embedder": {"flush_size": 64},
        }

    @property
    def partitions(self) -> str:
        return f"{self._first:%Y-%m}...{date.today():%Y-%m}"

    def partitions_of(self, entry: Entry) -> list[str]:
        return [f"{entry.day:%Y-%m}"]

    @property
    def _first(self) -> date:
        return (date.today().replace(day=1) - timedelta(days=155)).replace(day=1)

    def files(self) -> dict[str, str]:
        return {id: self._page(one) for id, one in self.entries.items()}

    def _page(self, entry: Entry) -> str:
        title = json.dumps(entry.title, ensure_ascii=False)
        front = f"title: {title}\ncreated: {entry.day}\ntag: {entry.tag}\n"
        return f"---\n{front}---\n\n{entry.text}\n"

    def group(self, entry: Entry) -> str:
        return f"{entry.day:%Y-%m}"

    def new_id(self) -> str:
        return f"{self.random.choice(['ideas', 'talks/2026', 'people'])}/{self._next()}.md"

    def moved(self, entry: Entry) -> Entry:
        """Another day, and so, often, another partition."""
        return replace(entry, day=date.today() - timedelta(days=self.random.randint(0, 150)))

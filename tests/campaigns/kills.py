"""Kills Dagster's command line at random moments, and compares the index with what it should hold.

`python -m tests.campaigns.kills --kills 60 --seed 1` makes a project of two collections in a new
folder, with the dagster.yaml and the model that ship. In each round the archives are edited, runs
over all partitions are killed, and then the same commands run to their end. Whatever is not as the
archives say, and whatever hangs, is a violation: the state is kept, and the exit status is 1.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml
from rich.console import Console
from rich.table import Table

from embedding_assets.collection.collection import CollectionAssets
from embedding_assets.collection.embedder_settings import LocalEmbedderSettings
from tests.campaigns import audit
from tests.campaigns.archive import Archive, Notes, Tickets, real_paragraphs
from tests.campaigns.audit import Place, Vectors
from tests.support.checkout import PROJECT
from tests.support.instance import dagster_home

PROGRAMS = Path(sys.executable).parent
_MATERIALIZE = [PROGRAMS / "dagster", "asset", "materialize", "-m", "embedding_assets.definitions"]
HANG_SECONDS = 600
"""No run of some hundred texts takes so long, on however busy a machine."""
_SIGNALS = [signal.SIGKILL] * 6 + [signal.SIGTERM] * 2 + [signal.SIGINT] * 2
_TOO_MANY_DELETED_EVERY = 5
_IDLE_RUN_EVERY = 3
"""So many rounds."""
_MOST_VIOLATIONS = 20


class Hang(Exception):
    """A process did not end in time; it has been killed."""


@dataclass
class Command:
    """One run of a collection over all its partitions, in a process group of its own."""

    archive: Archive
    process: subprocess.Popen[bytes]
    log: Path
    home: Path
    run_id: str = ""
    began: float = field(default_factory=time.monotonic)

    def wait(self, seconds: float = HANG_SECONDS) -> int:
        """Returns the exit status.

        Raises:
            Hang: the threads' stacks are in the log.
        """
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # PYTHONFAULTHANDLER writes the stacks
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            raise Hang(f"{self.archive.name}: no end after {seconds:.0f} s: {self.log}") from None

    def wait_for_run(self) -> None:
        """Until its run has begun, and is known, or it is over."""
        own = f"{self.process.pid} on "
        while self.process.poll() is None and not self.run_id:
            for record in (self.home / "runs_under_way").glob("*"):
                with suppress(FileNotFoundError):
                    if record.read_text().startswith(own):
                        self.run_id = record.name
            time.sleep(0.02)

    def send(self, number: signal.Signals, target: str, chosen: random.Random) -> str:
        """Sends a signal to the group, to the main process, or to a random other one of it."""
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            others = psutil.Process(self.process.pid).children(recursive=True)
            if target == "other" and others:
                chosen.choice(others).send_signal(number)
                return "other"
            if target == "group":
                os.killpg(self.process.pid, number)
                return "group"
            self.process.send_signal(number)
        return "main"


@dataclass
class Campaign:
    """The project, and what has happened so far."""

    folder: Path
    random: random.Random
    console: Console = field(default_factory=lambda: Console(width=140, soft_wrap=True))
    kills: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    hangs: int = 0
    missed: int = 0
    longest: float = 0.0
    runs: int = 0
    _usual: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.place = Place(self.folder / "home", self.folder / "data", self.folder / "tmp")
        self.place.temporary.mkdir(parents=True)
        dagster_home(self.place.home)
        paragraphs = real_paragraphs()
        self.archives: list[Archive] = [
            kind(self.folder / "archive" / kind.name, paragraphs, self.random)
            for kind in (Tickets, Notes)
        ]
        self._write_project()
        os.environ.update(self._environment())
        sys.path.append(str(self.folder))
        self.vectors = Vectors(LocalEmbedderSettings().model)

    def _write_project(self) -> None:
        (self.folder / "pyproject.toml").write_text(
            '[tool.dg]\ndirectory_type = "project"\n[tool.dg.project]\nroot_module = "campaign"\n'
        )
        for archive in self.archives:
            beside = self.folder / "campaign" / "defs" / archive.name
            beside.mkdir(parents=True)
            component = {
                "type": "embedding_assets.EmbeddingCollection",
                "attributes": archive.attributes,
            }
            (beside / "defs.yaml").write_text(yaml.safe_dump(component))
        for package in ("campaign", "campaign/defs"):
            (self.folder / package / "__init__.py").touch()

    def _environment(self) -> dict[str, str]:
        return {
            "DAGSTER_HOME": str(self.place.home),
            "EMBEDDING_PROJECT": str(self.folder),
            "EMBEDDING_DATA_DIR": str(self.place.data),
            "PYTHONPATH": f"{PROJECT}{os.pathsep}{self.folder}",
        }

    def start(self, archive: Archive, data: Path | None = None) -> Command:
        self.runs += 1
        log = self.folder / "logs" / f"{self.runs:04}-{archive.name}.log"
        log.parent.mkdir(exist_ok=True)
        assets = " or ".join(f'key:"{archive.name}/{one}"' for one in CollectionAssets.ASSETS)
        environment = {**os.environ, "TMPDIR": str(self.place.temporary), "PYTHONFAULTHANDLER": "1"}
        home = self.place.home
        if data is not None:
            home = dagster_home(data / "home")
            environment |= {"EMBEDDING_DATA_DIR": str(data), "DAGSTER_HOME": str(home)}
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*_MATERIALIZE, "--select", assets, "--partition-range", archive.partitions],
                cwd=self.folder,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return Command(archive, process, log, home)

    def to_its_end(self, archives: Sequence[Archive], data: Path | None = None) -> None:
        """Runs collections to their end, sometimes at the same time."""
        at_once = len(archives) if self.random.random() < 0.5 else 1
        for first in range(0, len(archives), at_once):
            commands = [self.start(one, data) for one in archives[first : first + at_once]]
            for command in commands:
                command.wait_for_run()
                began = time.monotonic()
                try:
                    status = command.wait()
                except Hang as hang:
                    self.hangs += 1
                    self.violated(str(hang))
                    continue
                self._usual[command.archive.name] = time.monotonic() - began
                self.longest = max(self.longest, time.monotonic() - command.began)
                if status:
                    self.violated(f"exit status {status}: {command.log}")

    def kill_some(self, archives: Sequence[Archive]) -> None:
        """Starts collections, one or all, and kills at least one of them on the way."""
        some = [self.random.choice(archives)] if self.random.random() < 0.6 else [*archives]
        victims = {self.random.choice(some).name}
        if self.random.random() < 0.3:
            victims = {one.name for one in some}
        commands = [self.start(one) for one in some]
        self.random.shuffle(commands)
        for command in commands:
            try:
                if command.archive.name in victims:
                    self._kill(command)
                elif status := command.wait():
                    self.violated(f"exit status {status}: {command.log}")
            except Hang as hang:
                self.hangs += 1
                self.violated(str(hang))

    def _kill(self, command: Command) -> None:
        number = self.random.choice(_SIGNALS)
        target = self.random.choice(["group", "group", "main", "main", "other"])
        if self.random.random() < 0.9:  # else while it starts
            command.wait_for_run()
            usual = self._usual[command.archive.name]
        else:
            usual = 3.0
        with suppress(subprocess.TimeoutExpired):
            command.process.wait(self.random.uniform(0, usual))
        if command.process.poll() is not None:
            self.missed += 1
            return
        target = command.send(number, target, self.random)
        status = command.wait()
        asset = audit.asset_under_way(self.place, command.run_id)
        self.kills[number.name, asset, target] += 1
        self.say(f"{number.name} to {target} of {command.archive.name} in {asset}: {status}")

    def round(self, number: int) -> None:
        """Edits, kills, edits and kills again, ends what was begun, and looks at everything."""
        too_many = (
            self.random.choice(self.archives) if number % _TOO_MANY_DELETED_EVERY == 0 else None
        )
        for archive in self.archives:
            archive.begin_round()
            if archive is too_many:
                archive.delete_too_many()
            else:
                archive.edit()
        self.kill_some(self.archives)
        while self.random.random() < 0.75:
            if self.random.random() < 0.5:
                for archive in self.archives:
                    if archive is not too_many:
                        archive.edit()
            self.kill_some(self.archives)
        self.to_its_end(self.archives)
        self.look()
        if too_many is not None:
            self.accept(too_many)
            if self.random.random() < 0.5:
                self.kill_some([too_many])
            self.to_its_end([too_many])
            self.look()
        if number % _IDLE_RUN_EVERY == 0:
            self.run_idly(self.random.choice(self.archives))

    def run_idly(self, archive: Archive) -> None:
        """The same command again, which should do nothing."""
        command = self.start(archive)
        if status := command.wait():
            self.violated(f"exit status {status}: {command.log}")
        self.check(audit.audit_idle_run(self.place), audit.audit_surroundings(self.place))

    def look(self) -> None:
        """Compares everything with the archives, where nothing is left to be done."""
        self.check(audit.audit_surroundings(self.place))
        for archive in self.archives:
            self.check(audit.audit_index(archive, self.vectors), audit.audit_plan(archive))

    def compare_with_a_fresh_build(self) -> None:
        fresh = self.folder / "fresh"
        fresh.mkdir()
        (fresh / "models").symlink_to(self.place.data / "models")
        self.to_its_end(self.archives, fresh)
        for archive in self.archives:
            self.check(audit.audit_against_fresh(archive, fresh))
        self.check(audit.audit_disk(self.place, fresh))
        self.sizes = audit.disk_use(self.place.data), audit.disk_use(fresh)

    def accept(self, archive: Archive) -> None:
        """Agrees to the deletions that are withheld, with the command that users have."""
        command = [PROGRAMS / "embedding-assets", "accept", archive.name, "--partition"]
        subprocess.run([*command, archive.partitions], check=True, stdout=subprocess.DEVNULL)
        archive.accept()

    def check(self, *found: Iterable[str]) -> None:
        for some in found:
            for sentence in some:
                self.violated(sentence)

    def violated(self, sentence: str) -> None:
        self.say(f"VIOLATION: {sentence}")
        if not self.violations:
            self.keep_evidence()
        self.violations.append(sentence)

    def keep_evidence(self) -> None:
        evidence = self.folder / "evidence"
        for part in ("home", "data", "archive", "tmp"):
            if (self.folder / part).exists():
                shutil.copytree(self.folder / part, evidence / part, symlinks=True)
        self.say(f"The state as it is now is kept in {evidence}")

    def say(self, sentence: str) -> None:
        self.console.print(f"{time.strftime('%H:%M:%S')} {sentence}", markup=False, highlight=False)

    def print_table(self, rounds: int) -> None:
        table = Table(title="Kills by signal, process and asset")
        assets = ["start", *CollectionAssets.ASSETS, "between"]
        for column in ("signal", "process", *assets, "all"):
            table.add_column(column)
        for number, target in sorted({(n, t) for n, _, t in self.kills}):
            counts = [self.kills[number, asset, target] for asset in assets]
            table.add_row(number, target, *map(str, [*counts, sum(counts)]))
        totals = [sum(n for k, n in self.kills.items() if k[1] == asset) for asset in assets]
        table.add_row("all", "", *map(str, [*totals, sum(totals)]))
        self.console.print(table)
        edits = sum((archive.edits for archive in self.archives), Counter())
        used, fresh = self.sizes
        for line in (
            f"rounds {rounds}, runs {self.runs}, over before the signal {self.missed}",
            f"edits: {', '.join(f'{kind} {n}' for kind, n in sorted(edits.items()))}",
            f"bytes: {', '.join(f'{k} {v:,} (fresh build {fresh[k]:,})' for k, v in used.items())}",
            f"longest run that was not killed: {self.longest:.0f} s",
            f"violations {len(self.violations)}, hangs {self.hangs}",
            *self.violations,
        ):
            self.say(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=60, help="at least so many")
    parser.add_argument("--seed", type=int, default=1, help="of edits and of moments")
    parser.add_argument("--folder", type=Path, help="where; by default a temporary folder")
    parser.add_argument("--models", type=Path, help="a folder of compiled models, to save a minute")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="kills-"))
    folder.mkdir(parents=True, exist_ok=True)
    campaign = Campaign(folder.resolve(), random.Random(given.seed))
    if given.models:
        campaign.place.data.mkdir()
        (campaign.place.data / "models").symlink_to(given.models.resolve())
    campaign.say(f"In {folder}, seed {given.seed}")
    for archive in campaign.archives:
        archive.fill()
    campaign.to_its_end(campaign.archives)
    campaign.look()
    rounds = 0
    while campaign.kills.total() < given.kills and len(campaign.violations) < _MOST_VIOLATIONS:
        rounds += 1
        campaign.round(rounds)
        campaign.say(
            f"round {rounds}: {campaign.kills.total()} kills, {len(campaign.violations)} violations"
        )
    campaign.compare_with_a_fresh_build()
    campaign.print_table(rounds)
    if campaign.violations:
        sys.exit(1)
    if given.folder is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()

"""The checkout that is tested, and copies of it to work in."""

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
_NOT_COPIED = shutil.ignore_patterns(
    ".git", ".venv", "data", "__pycache__", "*.egg-info", ".*_cache", "history", "storage", "logs"
)


def copy_checkout(target: Path, models: Path) -> Path:
    """Copies the project without what it has put out, except for a link to compiled models."""
    shutil.copytree(PROJECT, target, ignore=_NOT_COPIED)
    (target / "data").mkdir()
    (target / "data" / "models").symlink_to(models)
    return target


class FreshCheckout:
    """A copy of the project as `make venv` leaves it, and shells that know of nothing else.

    Attributes:
        folder: the copy.
        home: the user's home folder, empty at first.
    """

    PROGRAMS = ("embedding-assets", "dg", "dagster", "dagster-webserver", "dagster-daemon")

    def __init__(self, folder: Path, models: Path) -> None:
        self.folder = copy_checkout(folder / "project", models)
        self.home = folder / "home"
        self.home.mkdir()
        make_environment(self.folder / ".venv", (self.folder,), self.PROGRAMS)
        (self.folder / ".venv" / ".installed").touch()

    @property
    def environment(self) -> dict[str, str]:
        """What a login gives, without anybody's settings."""
        kept = {key: os.environ[key] for key in ("TMPDIR", "LANG") if key in os.environ}
        return kept | {"HOME": str(self.home), "PATH": os.defpath, "COLUMNS": "120"}

    def run(self, script: str, *, fails: bool = False) -> str:
        """What a script says in a shell of its own, on both streams."""
        with self.shell() as shell:
            status, said = shell.run(script)
        if (status != 0) != fails:
            pytest.fail(f"{script}\nexit status {status}: {said[-4000:]}")
        return said

    @contextmanager
    def shell(self) -> Iterator["Shell"]:
        """A new bash in the folder of the copy."""
        with subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # Python ignores Ctrl-C where its parent does, as one in the background may.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as process:
            yield Shell(process, self.folder)


class Shell:
    """A running bash, which is told one piece of a script after the other."""

    _DONE = "<<<done>>>"

    def __init__(self, process: "subprocess.Popen[str]", folder: Path) -> None:
        self._process = process
        self._folder = folder
        self._tell("set -m; trap 'failed=$?' ERR")  # jobs get process groups of their own

    def run(self, script: str) -> tuple[int, str]:
        """Runs it to its end.

        Returns:
            The exit status of the last command that failed, or 0, and what was said.
        """
        self._tell(f"failed=0\n{{ {script}\n}} </dev/null\necho; echo '{self._DONE}' $failed")
        said = []
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(self._DONE):
                return int(line.split()[1]), "".join(said).removesuffix("\n")
            said.append(line)
        pytest.fail(f"the shell ended: {''.join(said)[-4000:]}")

    @contextmanager
    def serving(self, script: str) -> Iterator[Path]:
        """Runs it in the background, and ends it politely; what it says is in the file."""
        self._tell(f"( {script}\nwait ) </dev/null >served.log 2>&1 & job=$!")
        try:
            yield self._folder / "served.log"
        finally:
            self.run("kill -TERM -- -$job; wait $job || true")

    def _tell(self, script: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(script + "\n")
        self._process.stdin.flush()


def make_environment(folder: Path, sources: Iterable[Path], programs: Iterable[str]) -> None:
    """Makes a virtual environment of the packages that the tests run with.

    Args:
        folder: the new environment.
        sources: what comes before those packages; a .pth file among them, such as that of an
            editable installation, has no effect.
        programs: those of the tests' environment that the new one has, too.
    """
    venv.create(folder, symlinks=True)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    paths = [*map(str, sources), sysconfig.get_path("purelib")]
    (site_packages / "others.pth").write_text("\n".join(paths))
    for name in programs:
        program = (Path(sys.executable).parent / name).read_text()
        script = folder / "bin" / name
        script.write_text(re.sub(r"^#!.*", f"#!{folder}/bin/python", program, count=1))
        script.chmod(0o755)

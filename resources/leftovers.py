"""What a killed process leaves behind carries its owner's name, so that the next one removes it."""

import os
import shutil
import socket
from pathlib import Path

import psutil


def owner() -> str:
    """This process, as a part of a file's name: host and process id."""
    return f"{socket.gethostname()}.{os.getpid()}"


def remove_leftovers(folder: Path, prefix: str, suffix: str) -> None:
    """Removes files and folders `{prefix}{owner}{suffix}` whose owner, of this host, is gone.

    Args:
        folder: where to look; not below it.
        prefix: what stands before the owner; a glob pattern.
        suffix: what stands after it; a glob pattern.
    """
    host = f"{socket.gethostname()}."
    for leftover in folder.glob(f"{prefix}{host}*{suffix}"):
        process = leftover.name.rpartition(host)[2].partition(".")[0]
        if process.isdigit() and not psutil.pid_exists(int(process)):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)

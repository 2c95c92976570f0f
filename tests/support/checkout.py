"""The checkout that is tested, and copies of it to work in."""

import shutil
from pathlib import Path

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

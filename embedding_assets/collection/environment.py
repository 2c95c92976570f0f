"""What the environment says: the project's folder, where its outputs are, and what machines share.

A variable that is set wins over the file `.env` in the project's folder, and that over the default.
"""

import os
from functools import lru_cache
from pathlib import Path

from dagster_shared.utils.config import locate_dg_config_in_folder
from dotenv import load_dotenv
from pydantic import ByteSize, Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from resources.errors import InvalidInputError
from resources.urls import in_folder

_PREFIX = "EMBEDDING_"
_CHECKOUT = Path(__file__).parents[2]


class Environment(BaseSettings):
    """All variables, each EMBEDDING_ and the field's name in capitals."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, env_ignore_empty=True, extra="ignore", frozen=True
    )

    project: Path = Field(
        description="Folder of the Dagster project, whose pyproject.toml has [tool.dg.project]; by "
        "default the one around the working directory."
    )
    data_dir: Path = Field(
        default=Path("data"), description="Folder of all outputs; relative to the project."
    )
    cache: str | None = Field(
        default=None,
        repr=False,
        description="Embedding cache: path of a DuckDB file, or redis://…; by default "
        "cache.duckdb in the data folder. Options of the URL: docs/providers.md.",
    )
    cache_memory_mb: int = Field(
        default=0, ge=0, description="Megabytes of vectors that are kept in memory, too."
    )
    cache_username: str | None = Field(default=None, description="Redis user of the cache.")
    cache_password: str | None = Field(
        default=None, repr=False, description="Redis password of the cache."
    )
    vectors: str | None = Field(
        default=None,
        repr=False,
        description="Vector store: a LanceDB folder, or one on object storage (s3://, gs://, az:// "
        "with keys in the storage's own variables); by default vectors in the data folder. "
        "?keep=1h says how long older versions of a table stay for readers on other machines.",
    )
    artifacts: str | None = Field(
        default=None,
        repr=False,
        description="Files that assets leave for each other: a folder, or any fsspec URL of one "
        "(s3://…, with that file system's package installed); by default artifacts in the data "
        "folder.",
    )
    rate_limiter: str | None = Field(
        default=None,
        repr=False,
        description="redis://… that shares rate limits between machines; by default the processes "
        "of one machine share theirs in files.",
    )
    broker: str | None = Field(
        default=None,
        repr=False,
        description="redis://… by which the service hands bulk jobs to `embedding-assets worker`; "
        "by default there are none.",
    )
    jobs: str | None = Field(
        default=None,
        repr=False,
        description="Bulk jobs and their results, which service and workers share: a folder, or "
        "any fsspec URL of one; by default jobs in the data folder.",
    )
    cores: int | None = Field(
        default=None,
        gt=0,
        description="Cores to use; by default those of the container or machine.",
    )
    memory: ByteSize | None = Field(
        default=None,
        gt=0,
        description="Memory to use; by default that of the container or machine.",
    )
    prices: Path | None = Field(
        default=None, description="YAML file of prices by model; by default that of the package."
    )
    webhook_url: str | None = Field(
        default=None,
        repr=False,
        description="Where failures are posted, as Slack takes it; by default they are logged.",
    )

    @field_validator("data_dir", "prices")
    @classmethod
    def _in_project(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        return path and info.data["project"] / path.expanduser()

    @field_validator("cache", "vectors", "artifacts", "jobs")
    @classmethod
    def _path_in_project(cls, url: str | None, info: ValidationInfo) -> str | None:
        return url and in_folder(url, info.data["project"])

    def __hash__(self) -> int:
        return hash(tuple(self.__dict__.values()))

    @property
    def models(self) -> Path:
        """The folder of compiled models."""
        return self.data_dir / "models"

    @property
    def dagster_home(self) -> Path:
        """Where Dagster keeps its history: DAGSTER_HOME, or `dagster_home` of the project."""
        return Path(os.environ.get("DAGSTER_HOME") or self.project / "dagster_home")


def read_environment(around: Path | None = None) -> Environment:
    """The environment as it is now; what `.env` adds is there for everybody afterwards.

    Args:
        around: a path within the project, unless EMBEDDING_PROJECT names it; by default the
            working directory.

    Raises:
        InvalidInputError: a variable holds what it cannot mean, or there is no project.
    """
    project = _project(around or Path.cwd())
    load_dotenv(project / ".env")
    try:
        environment = Environment(project=project)
        if environment.prices:  # what asks for it does not know the project
            os.environ[f"{_PREFIX}PRICES"] = str(environment.prices)
        return environment
    except ValidationError as error:
        # Without the values: some are secrets.
        wrong = (f"{_PREFIX}{e['loc'][0]}".upper() + f": {e['msg']}" for e in error.errors())
        message = f"The environment, or {project / '.env'}: {'; '.join(wrong)}."
    raise InvalidInputError(message)


def _project(around: Path) -> Path:
    variable = f"{_PREFIX}PROJECT"
    if named := os.environ.get(variable):
        folder = Path(named).expanduser().absolute()
        if not _is_project(folder):
            raise InvalidInputError(
                f"{variable} must name the folder of a Dagster project, with [tool.dg.project] in "
                f"its pyproject.toml; {folder} is none."
            )
        return folder
    around = around.absolute()
    for folder in (around, *around.parents, _CHECKOUT, *_CHECKOUT.parents):
        if _is_project(folder):
            return folder
    raise InvalidInputError(
        f"There is no Dagster project around {around}: no folder upwards has a pyproject.toml with "
        f"[tool.dg.project]. Go there, or set {variable} to its folder."
    )


def _is_project(folder: Path) -> bool:
    files = (folder / name for name in ("dg.toml", "pyproject.toml"))
    return _has_config(folder, tuple(file.stat().st_mtime_ns for file in files if file.exists()))


@lru_cache(maxsize=64)  # the file is parsed in pure Python, and the environment is read often
def _has_config(folder: Path, written: tuple[int, ...]) -> bool:
    return bool(written) and locate_dg_config_in_folder(folder) is not None

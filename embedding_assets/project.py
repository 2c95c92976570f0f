"""The collections of a project, loaded apart from each other: a broken file stops none but its own.

A file under `defs/` that cannot be loaded stands in Dagster as an asset and a sensor, which fail
with what says why. `dg check defs` and `dagster definitions validate` say the same, of all such
files at once; of an error that is no mistake in YAML they show where in the code it arose.
"""

import logging
import os
import re
import stat
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._utils.warnings import suppress_dagster_warnings
from dagster.components.core.context import ComponentDeclLoadContext
from dagster.components.core.decl import (
    ComponentDecl,
    ComponentLoaderDecl,
    DefsFolderDecl,
    PythonFileDecl,
    YamlDecl,
    YamlFileDecl,
    build_filesystem_component_decl_from_context,
)
from dagster.components.core.defs_module import (
    EXPLICITLY_IGNORED_GLOB_PATTERNS,
    ComponentFileModel,
    ComponentLoc,
    ComponentPath,
    find_defs_or_component_yaml,
)
from dagster.components.resolved.errors import ResolutionException
from dagster_shared.check import CheckError
from dagster_shared.error import DagsterUnresolvableSymbolError
from dagster_shared.record import record
from pydantic import ValidationError
from yaml import MarkedYAMLError

from embedding_assets.collection.collection import CollectionAssets, CollectionResources
from embedding_assets.collection.environment import read_environment
from embedding_assets.collection.mistakes import (
    YamlMistakeError,
    looks_for_mistakes,
    told_of_file,
    told_of_syntax,
)
from embedding_assets.collection.resources import collection_resources, shared_resources
from embedding_assets.collection.settings import CollectionSettings
from embedding_assets.component import EmbeddingCollection
from resources.errors import EmbeddingAssetsError, InvalidInputError
from resources.identity.content_hash import fingerprint

_MISTAKES = (
    EmbeddingAssetsError,
    ValidationError,
    MarkedYAMLError,
    CheckError,
    dg.DagsterError,
    DagsterUnresolvableSymbolError,
)
_OF_LIBRARIES = ("DUCKDB_", "LANCE_", "RAYON_", "TOKIO_")
_LONGEST = 1_000
_NEAR = 0.8
_GROUP = "not_loaded"
_SECONDS_BETWEEN_TICKS = 60
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedCollections:
    """The collections of a project, and a sentence for each file that could not be loaded."""

    collections: list[tuple[CollectionSettings, CollectionResources]]
    broken: list[str]


def load_collections(name: str | None = None) -> LoadedCollections:
    """The project's collections, sorted by name, and their resources for use outside of Dagster.

    Args:
        name: only the collection of this name, if there is one: into the files of the others
            nobody looks.
    """
    environment = read_environment()
    shared = shared_resources(environment)
    tree = _new_tree(environment.project)
    loaded, broken = [], []
    for file, component in tree.collections(name):
        if isinstance(component, BrokenFile):
            broken.append(component.sentence)
            continue
        settings = component.settings
        if name not in (None, settings.name):
            continue
        try:
            tree.check_name(settings.name)
            own = shared | collection_resources(settings, environment)
            loaded.append((settings, CollectionAssets(settings).resources_of(own)))
        except EmbeddingAssetsError as error:
            broken.append(_sentence(file, error))
    loaded.sort(key=lambda one: one[0].name)
    return LoadedCollections(loaded, list(dict.fromkeys(broken)))


@suppress_dagster_warnings
def project_definitions(around: Path | None = None) -> dg.Definitions:
    """What stands under a project's `defs/`, each file apart from the others.

    A process makes it once: Dagster asks for it before a run, and again before each step. Once a
    file there or a variable of the environment has changed it is made anew.

    Args:
        around: a path within the project; by default the working directory.

    Raises:
        YamlMistakeError: there are some, and a command looks for them.
    """
    project = read_environment(around).project
    written = written_definitions(project)
    variables = {
        (name, value)
        for name, value in os.environ.items()
        if not name.startswith(_OF_LIBRARIES)  # which are set when a run first needs them
    }
    return _definitions(project, written, frozenset(variables))


def written_definitions(project: Path) -> frozenset[Any]:
    """What stands under a project's `defs/`: something else once a file has changed."""
    found = set()
    for file in _found(project).defs_module_path.rglob("*"):
        with suppress(FileNotFoundError):  # it is just being replaced
            status = file.stat()
            if stat.S_ISREG(status.st_mode) and file.suffix != ".pyc":
                found.add((str(file), status.st_mtime_ns, status.st_size, status.st_ino))
    return frozenset(found)


@lru_cache(maxsize=1)
def _definitions(
    project: Path, written: frozenset[Any], variables: frozenset[tuple[str, str]]
) -> dg.Definitions:
    del written, variables  # what the definitions depend on
    tree = _new_tree(project)
    definitions = tree.build_defs()
    if tree.mistakes:
        raise YamlMistakeError("\n\n".join(sorted({*tree.mistakes})))
    return definitions


@lru_cache(maxsize=16)  # two TOML parsers in pure Python read the project's settings
def _found(project: Path) -> "CollectionTree":
    return CollectionTree.for_project(project)


def _new_tree(project: Path) -> "CollectionTree":
    """Nothing of it is loaded yet."""
    found = _found(project)
    return CollectionTree(
        defs_module=found.defs_module,
        project_root=found.project_root,
        code_location_name=found.code_location_name,
    )


class BrokenFile(dg.Component):
    """What stands in Dagster for a file that cannot be loaded."""

    def __init__(self, name: str, sentence: str) -> None:
        self.name = name
        self.sentence = sentence

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        del context
        if not looks_for_mistakes():  # it is said anyway
            _log.warning("Not loaded: %s", self.sentence)

        @dg.asset(
            key=[_GROUP, self.name],
            group_name=_GROUP,
            description=f"Could not be loaded.\n\n```\n{self.sentence}\n```",
        )
        def broken() -> None:
            raise dg.Failure(self.sentence, allow_retries=False)

        @dg.sensor(
            name=f"{_GROUP}_{self.name}",
            minimum_interval_seconds=_SECONDS_BETWEEN_TICKS,
            default_status=dg.DefaultSensorStatus.RUNNING,
            description=f"Fails until this is mended.\n\n```\n{self.sentence}\n```",
        )
        def sensor() -> None:
            raise InvalidInputError(self.sentence)

        return dg.Definitions(assets=[broken], sensors=[sensor])


@record
class _BrokenDecl(ComponentDecl[BrokenFile]):
    """A file of which not even the type of its component is known."""

    component: BrokenFile

    def _load_component(self) -> BrokenFile:
        return self.component

    @property
    def component_type(self) -> type[BrokenFile]:
        return BrokenFile


class CollectionTree(dg.ComponentTree):
    """All that stands under `defs/`; what cannot be loaded is a `BrokenFile` in its place."""

    def collections(
        self, name: str | None = None
    ) -> Iterator[tuple[Path, EmbeddingCollection | BrokenFile]]:
        """The collections, and what may be some but cannot be loaded, each with its file.

        Args:
            name: leaves out, unloaded, the files that say that they are another collection.
        """
        named = self._declarations
        asked = named.values() if name is None else (named.get(name, ()), named.get(None, ()))
        for loc, decl in chain.from_iterable(asked):
            if issubclass(decl.component_type, EmbeddingCollection | BrokenFile):
                component = self.load_structural_component_at_loc(loc)
                assert isinstance(component, EmbeddingCollection | BrokenFile)
                yield _file(loc), component

    def check_name(self, name: str) -> None:
        """A name that two collections have would mix their rows, so that none of them is loaded.

        Raises:
            InvalidInputError: it names the files.
        """
        files = [
            str(file)
            for file, component in self.collections(name)
            if isinstance(component, EmbeddingCollection) and component.settings.name == name
        ]
        if len(files) > 1:
            raise InvalidInputError(
                f"{len(files)} collections have the name '{name}': {', '.join(files)}. A name is "
                "that of assets and tables: give each its own."
            )

    @cached_property
    def mistakes(self) -> list[str]:
        """What is wrong in YAML files, if a command looks for that."""
        return []

    @cached_property
    def _declarations(self) -> dict[object, list[tuple[ComponentLoc, ComponentDecl]]]:
        """By the name that each gives itself; None: those of which it is known once loaded."""
        named = defaultdict(list)
        for loc, decl in self.find_root_decl().iterate_loc_component_decl_pairs():
            named[_said_name(decl) if isinstance(decl, YamlDecl) else None].append((loc, decl))
        return named

    def _get_filesystem_decl(self) -> ComponentDecl:
        loc = ComponentPath.from_path(self.defs_module_path)
        if self.state_tracker.get_cache_data(loc).component_decl is None:
            decl = self._declaration(self.decl_load_context.for_component_loc(loc))
            self.state_tracker.set_cache_data(loc, component_decl=decl)
        return super()._get_filesystem_decl()

    def _declaration(self, context: ComponentDeclLoadContext) -> ComponentDecl | None:
        """As Dagster's, but each file of a folder by itself."""
        path = context.path
        loc = ComponentPath.from_path(path)
        if not path.is_dir() or find_defs_or_component_yaml(path):
            try:
                return build_filesystem_component_decl_from_context(context)
            except Exception as error:
                component = self._broken(loc, error)
                return _BrokenDecl(context=context, loc=loc, component=component)
        children = {}
        for child in sorted(path.iterdir()):
            if not any(Path(child.name).match(each) for each in EXPLICITLY_IGNORED_GLOB_PATTERNS):
                inner = context.for_component_loc(ComponentPath.from_path(child))
                if decl := self._declaration(inner):
                    children[child] = decl
        if not children:
            return None
        return DefsFolderDecl(
            context=context, loc=loc, children=children, source_tree=None, component_file_model=None
        )

    def _load_component_at_loc(self, resolved_loc: ComponentLoc) -> None:
        try:
            super()._load_component_at_loc(resolved_loc)
        except Exception as error:
            decl = self._decl_of_file(resolved_loc)
            if decl is None:
                raise
            self.state_tracker.set_cache_data(
                resolved_loc, component=self._broken(resolved_loc, error), component_decl=decl
            )

    def _build_defs_inner(self, resolved_loc: ComponentLoc) -> dg.Definitions | None:
        try:
            component = self.load_structural_component_at_loc(resolved_loc)
            if isinstance(component, EmbeddingCollection):
                self.check_name(component.settings.name)
            return super()._build_defs_inner(resolved_loc)
        except Exception as error:
            if self._decl_of_file(resolved_loc) is None:
                raise
            defs = self._broken(resolved_loc, error).build_defs(self.load_context)
            self.state_tracker.set_cache_data(resolved_loc, defs=defs)
            return defs

    def _decl_of_file(self, loc: ComponentLoc) -> ComponentDecl | None:
        decl = dict(self.find_root_decl().iterate_loc_component_decl_pairs()).get(loc)
        ones = YamlDecl | YamlFileDecl | PythonFileDecl | ComponentLoaderDecl
        return decl if isinstance(decl, ones) else None

    def _broken(self, loc: ComponentLoc, error: Exception) -> BrokenFile:
        """What stands for a file.

        Raises:
            Exception: the error itself, if it is no mistake in YAML and a command looks for errors.
        """
        sentence = _sentence(_file(loc), error)
        if looks_for_mistakes():
            if not isinstance(_reason(error), (*_MISTAKES, _template_error())):
                raise error
            self.mistakes.append(sentence)
        where = loc.get_display_key(self.defs_module_path)
        name = re.sub(r"\W", "_", where.removesuffix("[0]"), flags=re.ASCII)
        if name != where.removesuffix("[0]"):  # so that two of them stay two
            name += f"_{fingerprint(where, 4).hex()}"
        return BrokenFile(name, sentence)


def _said_name(decl: YamlDecl) -> str:
    model = decl.component_file_model
    return str(model.attributes.get("name", "")) if model and model.attributes else ""


def _file(loc: ComponentLoc) -> Path:
    path = loc.file_path if isinstance(loc, ComponentPath) else Path(str(loc))
    return find_defs_or_component_yaml(path) or path


def _reason(error: BaseException) -> BaseException:
    """The error below one that quotes half the file."""
    if isinstance(error, ResolutionException):
        return error.__cause__ or error.__context__ or error
    return error


def _template_error() -> type[Exception]:
    from jinja2 import TemplateError  # Dagster imports it for templates, which few files have

    return TemplateError


def _sentence(file: Path, error: BaseException) -> str:
    """What is wrong, and where; without values, of which some are secrets."""
    error = _reason(error)
    if isinstance(error, YamlMistakeError):
        return str(error)
    if isinstance(error, ValidationError):
        said = told_of_file(error, ComponentFileModel)
    elif isinstance(error, MarkedYAMLError):
        said = told_of_syntax(error)
    elif isinstance(error, _template_error()):
        said = f"{{{{ }}}} holds no template: {error}"
    elif isinstance(error, _MISTAKES):
        said = " ".join(str(error).split()).removeprefix("Invariant failed. Description: ")
        if isinstance(error, DagsterUnresolvableSymbolError):
            said += _meant(file)
    else:
        said = " ".join(f"{type(error).__name__}: {error}".split())
    said = said if len(said) <= _LONGEST else said[: _LONGEST - 1] + "…"
    return said if str(file) in said else f"{file}: {said}"


def _meant(file: Path) -> str:
    """The type of a component of ours, if that of a file is nearly it."""
    ours = f"embedding_assets.{EmbeddingCollection.__name__}"
    given = re.findall(r"^type:\s*(\S+)", file.read_text(), re.M)
    return f" Did you mean {ours}?" if get_close_matches(ours, given, 1, _NEAR) else ""

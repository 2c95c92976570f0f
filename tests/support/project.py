"""A Dagster project with collections in YAML files."""

import itertools
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from embedding_assets.collection.settings import CollectionSettings
from embedding_assets.component import EmbeddingCollection

_NUMBERS = itertools.count()


class Project:
    """A Dagster project in a folder of its own, which must be on the path."""

    def __init__(self, folder: Path) -> None:
        package = f"project_{next(_NUMBERS)}"
        (folder / "pyproject.toml").write_text(
            f'[tool.dg]\ndirectory_type = "project"\n[tool.dg.project]\nroot_module = "{package}"\n'
        )
        self.folder = folder
        self.beside = folder / package / "defs" / "docs"
        self.beside.mkdir(parents=True)
        (folder / package / "__init__.py").touch()
        (folder / package / "defs" / "__init__.py").touch()

    def write(self, attributes: str | dict[str, Any] | None, folder: str = "docs") -> Path:
        """Writes the YAML file of a collection, whole or its attributes, in a folder of `defs`."""
        if not isinstance(attributes, str):
            component = {"type": "embedding_assets.EmbeddingCollection", "attributes": attributes}
            attributes = yaml.safe_dump(component)
        file = self.beside.parent / folder / "defs.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(attributes)
        return file

    def load(self, attributes: str | dict[str, Any] | None) -> CollectionSettings:
        self.write(attributes)
        tree = dg.ComponentTree.for_project(self.folder)
        (component,) = tree.get_all_components(of_type=EmbeddingCollection)
        return component.settings

    def definitions(self, attributes: dict[str, Any]) -> dg.Definitions:
        self.write(attributes)
        return dg.ComponentTree.for_project(self.folder).build_defs()

    def error(self, attributes: str | dict[str, Any] | None) -> str:
        with pytest.raises(Exception) as caught:  # noqa: PT011 - Dagster has several
            self.load(attributes)
        messages, error = [], caught.value
        while error is not None:
            messages.append(str(error))
            error = error.__cause__ or error.__context__
        return "\n".join(messages)

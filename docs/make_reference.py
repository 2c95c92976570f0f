"""Writes settings.md and command_line.md from the code, which alone says what there is.

Run it after a change of settings, variables or commands: `python -m docs.make_reference`.
"""

import inspect
import json
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ByteSize
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from embedding_assets.collection.embedder_settings import FallbackSettings, FirstEmbedderSettings
from embedding_assets.collection.environment import Environment
from embedding_assets.collection.settings import CollectionSettings
from embedding_assets.service.settings import ServiceSettings

_FOLDER = Path(__file__).parent
_NAMES = {
    str: "text",
    bool: "true or false",
    int: "whole number",
    float: "number",
    Path: "path",
    ByteSize: "size, such as `8GiB`",
}
_REQUIRED = "– (required)"
_LIMITS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
_MADE = "<!-- Made by docs/make_reference.py from the code: change it there. -->\n\n"
_SETTINGS = """\
# Settings

A collection is one YAML file, `embedding_assets/defs/NAME/defs.yaml`. Two settings are required,
`name` and `source.path`; all others have a default that works on a laptop. A misspelt one is an
error.

```yaml
type: embedding_assets.EmbeddingCollection
attributes:
  name: my_docs
  source:
    path: my_docs/*.jsonl
```

More about embedders is in [providers](providers.md), and about checks, deletions and automation in
[operate](operate.md). What all collections share is set by [variables](#variables).

"""
_SERVICE = """\
## Variables of the service

`embedding-assets serve` reads these besides ([serve](serve.md)).

"""
_VARIABLES = """\
## Variables

They are read from the environment and from a file `.env` in the project's folder, by Dagster and by
`embedding-assets` alike. What is set in the environment wins, except in Dagster's own commands,
which put a `.env` of the working directory first. Relative paths start at the project.

"""


def pages() -> dict[Path, str]:
    """The text of each page, by its file."""
    return {
        _FOLDER / "settings.md": settings_page(),
        _FOLDER / "command_line.md": command_line_page(),
    }


def settings_page() -> str:
    """Every setting of a collection's YAML, and every variable of the environment."""
    sections = "".join(_sections(CollectionSettings))
    variables = {f"EMBEDDING_{name}".upper(): f for name, f in Environment.model_fields.items()}
    table = _table("variable", variables).replace(_REQUIRED, "–").rstrip()
    prefix = ServiceSettings.model_config.get("env_prefix", "")
    service = {f"{prefix}{name}".upper(): f for name, f in ServiceSettings.model_fields.items()}
    served = _table("variable", service).rstrip()
    return f"{_MADE}{_SETTINGS}{sections}{_VARIABLES}{table}\n\n{_SERVICE}{served}\n"


def command_line_page() -> str:
    """Every command of `embedding-assets`, in the words of its `--help`."""
    command = (sys.executable, "-m", "typer", "embedding_assets.cli.main", "utils", "docs")
    said = subprocess.run(
        [*command, "--name", "embedding-assets", "--title", "Command line"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    shown = (line for line in said.splitlines() if not re.search(r"-completion|`--help`", line))
    page = re.sub(r"\*\*Options\*\*:\n\n(?!\*)", "", "\n".join(shown).strip())
    return _MADE + page.replace("&#x27;", "'").replace("&quot;", '"') + "\n"


def _sections(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The settings of a model, and after them those within it, each under a heading."""
    # `provider`, which decides about the others, comes first.
    fields = dict(sorted(model.model_fields.items(), key=lambda field: field[0] != "provider"))
    if prefix:
        yield _heading(prefix.removesuffix("."), model)
    plain = {name: field for name, field in fields.items() if not _models(field.annotation)}
    yield _table("setting", plain)
    for name, field in fields.items():
        for inner in _models(field.annotation):
            yield from _sections(inner, f"{prefix}{name}.")


def _heading(path: str, model: type[BaseModel]) -> str:
    sign, title = "#" * (2 + path.count(".")), f"`{path}`"
    if provider := model.model_fields.get("provider"):
        title += f" with `provider: {get_args(provider.annotation)[0]}`"
    meaning = inspect.getdoc(model) or ""
    if model is FallbackSettings:
        without = ", ".join(f"`{name}`" for name in FirstEmbedderSettings.model_fields)
        meaning += f" All settings of `embedder` but for {without}, and these:"
    return f"{sign} {title}\n\n{' '.join(meaning.split())}\n\n"


def _table(kind: str, fields: dict[str, FieldInfo]) -> str:
    rows = [f"| {kind} | type | default | meaning |", "|---|---|---|---|"]
    for name, field in fields.items():
        columns = (f"`{name}`", _type(field), _default(field), field.description or "")
        rows.append(f"| {' | '.join(each.replace('|', '&#124;') for each in columns)} |")
    return "\n".join(rows) + "\n\n"


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models that a setting may be; of a fallback, what all kinds have and embedders lack."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [FallbackSettings if issubclass(annotation, FallbackSettings) else annotation]
    found = [model for part in get_args(annotation) for model in _models(part)]
    return list(dict.fromkeys(found))


def _type(field: FieldInfo) -> str:
    limits = {
        name: f"{value:,}"
        for rule in field.metadata
        for name in _LIMITS
        if (value := getattr(rule, name, None)) is not None
    }
    named = _named(field.annotation)
    if limits.keys() == {"ge", "le"}:
        return f"{named} from {limits['ge']} to {limits['le']}"
    return ", ".join([named, *(f"{_LIMITS[name]} {value}" for name, value in limits.items())])


def _named(annotation: Any) -> str:
    if get_origin(annotation) is Annotated:
        return _named(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(_named(p) for p in get_args(annotation) if p is not types.NoneType)
    if get_origin(annotation) is Literal:
        return _choice(get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return _choice([each.value for each in annotation])
    if get_origin(annotation) in (list, tuple):
        return f"list of {_named(get_args(annotation)[0])}"
    if get_origin(annotation) is dict:
        return " to ".join(map(_named, get_args(annotation)))
    return _NAMES.get(annotation) or annotation.__name__


def _choice(values: Any) -> str:
    return ", ".join(f"`{value}`" for value in values)


def _default(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True, validated_data={})
    if default is PydanticUndefined:
        return _REQUIRED
    if default is None:
        return "–"
    if isinstance(default, tuple):
        default = list(default)
    if isinstance(default, Path):
        default = str(default)
    if isinstance(default, float) and default.is_integer():
        default = int(default)
    named = isinstance(default, str) and default
    return f"`{named or json.dumps(default, ensure_ascii=False)}`"


if __name__ == "__main__":
    for file, text in pages().items():
        file.write_text(text, encoding="utf-8")

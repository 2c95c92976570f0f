"""What is wrong in a YAML file: where, which key, what was meant, and what is allowed there."""

import os
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from dagster_shared.yaml_utils.source_position import SourcePositionTree
from pydantic import BaseModel, Tag, ValidationError
from pydantic_core import ErrorDetails

from resources.errors import InvalidInputError

_WIDTH = 100
_LONGEST_HELP = 185  # two lines
_MOST_MISTAKES = 3
_MOST_NAMES = 16
_LONGEST_VALUE = 40
_NEAR = 0.6
_NEAR_ELSEWHERE = 0.8
_SAID_BY_US = ("value_error", "provider")  # validators of ours: their messages say all
_PLAINLY = {
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid string": "a string",
    "a valid boolean": "true or false",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
}
_Model = TypeVar("_Model", bound=BaseModel)


def looks_for_mistakes() -> bool:
    """Whether a command of Dagster loads the definitions to find what is wrong in them."""
    return bool(os.environ.get("DAGSTER_IS_DEFS_VALIDATION_CLI"))


class YamlMistakeError(InvalidInputError):
    """A mistake in a YAML file, told in a few lines of which the first names file and line."""


def read_settings(
    model: type[_Model], given: Mapping[str, Any], where: SourcePositionTree | None
) -> _Model:
    """The settings that a part of a YAML file gives.

    Args:
        model: what they must be.
        given: as the file has them.
        where: where each of them stands; None if nobody knows.

    Raises:
        YamlMistakeError: they are not; without the values of keys that are none, which may be
            secrets.
    """
    try:
        return model.model_validate(given)
    except ValidationError as error:
        said = _all_told(error.errors(), model, where)
    raise YamlMistakeError(said)


def located(said: str, path: Sequence[str], where: SourcePositionTree | None) -> str:
    """What is said of a setting, after the file and the line where it stands."""
    return f"{where.lookup_closest_and_path(path, None)[0]}: {said}" if where else said


def check_keys_come_once(where: SourcePositionTree | None) -> None:
    """Refuses a file in which a key comes twice: of its values YAML would take the last one.

    Args:
        where: of any part of the file.

    Raises:
        YamlMistakeError: one does.
    """
    file = where and Path(where.position.filename)
    if not file or not file.exists():  # settings that are in no file
        return
    with file.open(encoding="utf-8") as stream:
        nodes = [node for node in yaml.compose_all(stream, yaml.SafeLoader) if node]
    while nodes:
        node = nodes.pop()
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        lines: dict[Any, int] = {}
        for key, value in pairs:
            line = key.start_mark.line + 1
            if (name := key.value) in lines:
                raise YamlMistakeError(
                    f"{file}:{line}: {name} is there twice, first in line {lines[name]}: put what "
                    "belongs to it into one of them."
                )
            lines[name] = line
            nodes.append(value)
        nodes += node.value if isinstance(node, yaml.SequenceNode) else []


def told_of_file(error: ValidationError, model: type[BaseModel]) -> str:
    """What is wrong around a component's attributes, from an error to which Dagster added lines."""
    without_lines = [
        {**each, "loc": (*str(each["loc"][0]).split(" at ")[0].split("."),)}
        for each in error.errors()
    ]
    return _all_told(without_lines, model, None)  # pyright: ignore[reportArgumentType]


def told_of_syntax(error: yaml.MarkedYAMLError) -> str:
    """Why a file is no YAML."""
    end, begin = error.problem_mark, error.context_mark
    said = f"{end.name}:{end.line + 1}: this is no YAML: " if end else "This is no YAML: "
    said += f"{error.problem}"
    if error.context:
        said += f" {error.context}"
        if begin and end and begin.line != end.line:
            said += f" that begins in line {begin.line + 1}"
    return said + (". Indent with spaces, not with tabs." if r"'\t'" in said else ".")


def _all_told(
    errors: Sequence[ErrorDetails], model: type[BaseModel], where: SourcePositionTree | None
) -> str:
    unknown = [each["loc"] for each in errors if each["type"] == "extra_forbidden"]
    errors = [
        each
        for each in errors
        if each["type"] != "missing" or not any(_is_near(loc, each["loc"]) for loc in unknown)
    ]
    said = [_told(each, model, where) for each in errors[:_MOST_MISTAKES]]
    if left := len(errors) - len(said):
        said.append(f"And {left} more {'mistake' if left == 1 else 'mistakes'}.")
    return "\n".join(said)


def _is_near(one: Sequence[str | int], other: Sequence[str | int]) -> bool:
    """Whether a key may be another one misspelt."""
    return one[:-1] == other[:-1] and bool(
        get_close_matches(str(one[-1]), [str(other[-1])], 1, _NEAR)
    )


def _told(error: ErrorDetails, model: type[BaseModel], where: SourcePositionTree | None) -> str:
    path, owner = _place(error["loc"], model)
    position = error.get("ctx", {}).get("source_position")
    if where:
        position = where.lookup_closest_and_path(path, None)[0]
    name = ".".join(map(str, path))
    if error["type"] == "extra_forbidden":
        first, *others = _unknown([str(step) for step in path], owner, model)
    else:
        first, *others = _wrong(error, name or "a file", owner, str(path[-1]) if path else "")
    if name not in first:
        first = f"{name}: {first}"
    lines = [f"{position}: {first}" if position else first]
    for other in others:
        short = textwrap.shorten(other, _LONGEST_HELP, placeholder=" …")
        lines += textwrap.wrap(short, _WIDTH, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(lines)


def _place(
    loc: Sequence[str | int], model: type[BaseModel]
) -> tuple[list[str | int], type[BaseModel] | None]:
    """A mistake's keys as in the file, and the settings to which the last of them belongs.

    Of settings that may be one of several kinds, pydantic puts the kind between the keys.
    """
    path: list[str | int] = []
    kinds: Mapping[str | None, type[BaseModel]] = {None: model}
    owner = None
    for step in loc:
        if step in kinds:
            kinds = {None: kinds[str(step)]}
            continue
        path.append(step)
        owner = kinds.get(None)
        field = owner.model_fields.get(str(step)) if owner else None
        kinds = _kinds(field.annotation) if field else {}
    return path, owner


def _kinds(annotation: Any) -> dict[str | None, type[BaseModel]]:
    """The settings that a field may hold, by the tag of their kind; None: there is but one."""
    if get_origin(annotation) is None:
        is_model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
        return {None: annotation} if is_model else {}
    metadata = getattr(annotation, "__metadata__", ())
    tag = next((each.tag for each in metadata if isinstance(each, Tag)), None)
    return {
        tag or inner: model
        for each in get_args(annotation)
        for inner, model in _kinds(each).items()
    }


def _unknown(path: list[str], owner: type[BaseModel] | None, model: type[BaseModel]) -> list[str]:
    """A key that is no setting: which was meant, and which there are."""
    *above, name = path
    allowed = list(owner.model_fields) if owner else []
    said = f"{'.'.join(path)} is no setting."
    others = {".".join(keys): home for keys, home in _settings(model)}
    same = [each for each in others if each.endswith(f".{name}")]
    same.sort(key=lambda each: not each.startswith(".".join(above)))
    near = get_close_matches(name, allowed, 1, _NEAR)
    near = near or [each for each in allowed if each.startswith(name)]
    far = {each.rpartition(".")[2]: each for each in reversed(others)}
    meant = same or near or [far[each] for each in get_close_matches(name, far, 1, _NEAR_ELSEWHERE)]
    help_ = []
    if meant:
        said += f" Did you mean {meant[0]}?"
        help_ = _help(meant[0].rpartition(".")[2], others.get(meant[0], owner))
    listed = "settings" if not above else f"settings of {'.'.join(above)}"
    if allowed and (len(allowed) <= _MOST_NAMES or not meant):
        return [said, f"The {listed}: {', '.join(allowed)}.", *help_]
    return [said, *help_]


def _settings(
    model: type[BaseModel], above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], type[BaseModel]]]:
    """All settings by their path, each with those that it belongs to."""
    for name, field in model.model_fields.items():
        yield (*above, name), model
        for inner in _kinds(field.annotation).values():
            yield from _settings(inner, (*above, name))


def _wrong(error: ErrorDetails, name: str, owner: type[BaseModel] | None, last: str) -> list[str]:
    """A value that cannot be, or one that is missing, and what the setting is for."""
    if error["type"] in _SAID_BY_US:
        return [error["msg"].removeprefix("Value error, ")]
    if error["type"] == "missing":
        return [f"{name} is missing.", *_help(last, owner)]
    value = repr(error["input"])
    got = value if len(value) <= _LONGEST_VALUE else type(error["input"]).__name__
    if error["type"] == "invalid_key":
        return [f"{name} is no setting: a setting is a word."]
    if error["type"] == "model_type":
        return [f"{name} must hold settings, not one value; got {got}.", *_help(last, owner)]
    said = re.sub(r"^\w+ should ", f"{name} must ", error["msg"].split(", ")[0])
    for theirs, ours in _PLAINLY.items():
        said = said.replace(theirs, ours)
    if "expected" in (context := error.get("ctx", {})):
        said = f"{name} must be {context['expected']}"
        near = get_close_matches(str(error["input"]), re.findall(r"'(.*?)'", said), 1, _NEAR)
        return [f"{said}; got {got}." + "".join(f" Did you mean {each}?" for each in near)]
    return [f"{said}; got {got}.", *_help(last, owner)]


def _help(name: str, owner: type[BaseModel] | None) -> list[str]:
    """What a setting is for, what it needs or is by default."""
    field = owner.model_fields.get(name) if owner else None
    if field is None:
        return []
    inner = next(iter(_kinds(field.annotation).values()), None)
    said = field.description or (inner and (inner.__doc__ or "").split("\n")[0]) or ""
    needed = (
        [key for key, each in inner.model_fields.items() if each.is_required()] if inner else []
    )
    if needed:
        said += f" It needs {', '.join(needed)}, as in {name}: {{{needed[0]}: …}}."
    if isinstance(field.default, str | int | float) and field.default != "":
        said += f" By default {field.default}."
    return [f"{name}: {said}"] if said else []

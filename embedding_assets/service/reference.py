"""The page at /docs: what the OpenAPI document says, for people.

FastAPI's own page takes a script of 1.5 MB from another host, which closed networks do not reach.
"""

import html
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_Json = Mapping[str, Any]
_LIMITS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}


def reference_page(document: _Json) -> str:
    """The page, in HTML.

    Args:
        document: of OpenAPI.
    """
    schemas = document.get("components", {}).get("schemas", {})
    contents: list[str] = []
    sections: dict[str, list[str]] = {}
    errors: dict[str, str] = {}
    named: list[str] = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            name = f"{method.upper()} {path}"
            anchor = re.sub(r"\W+", "-", name).strip("-")
            contents.append(f'<li><a href="#{anchor}">{_code(name)}</a></li>')
            shown = f"<h3>{_code(name)}</h3>{_endpoint(name, operation)}"
            of_tag = sections.setdefault(operation.get("tags", ["Other"])[0], [])
            of_tag.append(f'<article id="{anchor}">{shown}</article>')
            for status, answer in operation["responses"].items():
                named += _references(answer)
                if status >= "400":
                    errors[status] = _field(_code(status), "", answer["description"])
    sections["Errors"] = [f"<dl>{''.join(errors[status] for status in sorted(errors))}</dl>"]
    for name in named:  # grows meanwhile
        named += [one for one in _references(schemas[name]) if one not in named]
    sections["Answers"] = [
        f'<article id="{name}"><h3>{_code(name)}</h3>{_prose(schemas[name].get("description", ""))}'
        f"{_properties({**schemas[name], 'required': ()})}</article>"
        for name in dict.fromkeys(named)
    ]
    page = (Path(__file__).parent / "reference.html").read_text(encoding="utf-8")
    body = [
        f"<section><h2>{name}</h2>{''.join(parts)}</section>" for name, parts in sections.items()
    ]
    page = page.replace("<!-- contents -->", "\n".join(contents))
    return page.replace("<!-- sections -->", "\n".join(body))


def _endpoint(name: str, operation: _Json) -> str:
    parameters = operation.get("parameters", [])
    kind, body = _content(operation.get("requestBody", {}))
    shown = [_prose(operation.get("description", ""))]
    fields = [_parameter(one) for one in parameters]
    if fields:
        shown.append(f"<h4>In the address</h4><dl>{''.join(fields)}</dl>")
    if body:
        shown.append(f"<h4>Body</h4>{_properties(body)}")
    successes = [one for status, one in operation["responses"].items() if status < "400"]
    _, answer = _content(successes[0] if successes else {})
    if answer:
        shown.append(f"<h4>Answer</h4><p>{_type(answer)}</p>")
    command = _command(name, parameters, kind, body)
    shown.append(f'<div class="command" data-name="{html.escape(name)}"><pre>{command}</pre></div>')
    return "\n".join(shown)


def _command(name: str, parameters: Iterable[_Json], kind: str, body: _Json) -> str:
    """One of curl that works as it stands, but for what is in capitals."""
    method, path = name.split(" ", 1)
    path = re.sub(r"{(\w+)}", lambda found: found[1].upper(), path)
    asked = [
        f"{one['name']}={one['name'].upper()}"
        for one in parameters
        if one["in"] == "query" and one.get("required")
    ]
    path += f"?{'&'.join(asked)}" if asked else ""
    command = f"curl -s '<span class=\"base\">http://127.0.0.1:8080</span>{html.escape(path)}'"
    if method != ("POST" if kind else "GET"):  # as curl takes it to be
        command = command.replace("curl -s", f"curl -s -X {method}")
    if not kind:
        return command
    sent = {name: _example(name, body["properties"][name]) for name in body.get("required", ())}
    sent = body.get("examples", [sent])[0]
    said = json.dumps(sent) if body.get("properties") else "@FILE"
    return f"{command} \\\n  -H 'content-type: {kind}' -d '{html.escape(said, quote=False)}'"


def _example(name: str, schema: _Json) -> Any:
    if "examples" in schema:
        return schema["examples"][0]
    return [name.upper()] if schema.get("type") == "array" else name.upper()


def _properties(schema: _Json) -> str:
    required = schema.get("required", ())
    fields = []
    for name, field in schema.get("properties", {}).items():
        said = _type(field)
        if name in required:
            said += ", required"
        elif field.get("default") is not None:
            said += f", by default {_code(json.dumps(field['default']))}"
        fields.append(_field(_code(name), said, field.get("description", "")))
    return f"<dl>{''.join(fields)}</dl>"


def _parameter(one: _Json) -> str:
    said = _type(one["schema"]) + (", required" if one.get("required") else "")
    return _field(_code(one["name"]), said, one.get("description", ""))


def _field(name: str, said: str, description: str) -> str:
    kind = f'<p class="soft">{said}</p>' if said else ""
    return f"<div><dt>{name}</dt><dd>{kind}{_prose(description)}</dd></div>"


def _type(schema: _Json) -> str:
    if "$ref" in schema:
        (name,) = _references(schema)
        return f'<a href="#{name}">{_code(name)}</a>'
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(_type, schema["anyOf"])))
    if "enum" in schema:
        return " or ".join(_code(json.dumps(one)) for one in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items') or schema.get('prefixItems', [{}])[0])}"
    limits = [f"{said} {schema[limit]:,.15g}" for limit, said in _LIMITS.items() if limit in schema]
    return ", ".join([schema.get("type", "anything"), *limits])


def _content(of: _Json) -> tuple[str, _Json]:
    """Media type and schema of a body or an answer; empty if it has none."""
    for kind, content in of.get("content", {}).items():
        return kind, content.get("schema", {})
    return "", {}


def _references(value: Any) -> list[str]:
    """The names of all schemas that something refers to."""
    return re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(value))


def _prose(text: str) -> str:
    """Paragraphs; `code` as code."""
    parts = re.split(r"\n\s*\n", html.escape(text, quote=False)) if text else []
    return "".join("<p>" + re.sub("`([^`]+)`", r"<code>\1</code>", part) + "</p>" for part in parts)


def _code(text: str) -> str:
    return f"<code>{html.escape(text)}</code>"

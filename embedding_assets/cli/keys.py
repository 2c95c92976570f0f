"""`embedding-assets keys`: who may ask the HTTP service, for what, and how much a minute."""

from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedding_assets.cli.terminal import AsJson, errors_for_people, plain, print_rows

if TYPE_CHECKING:
    from embedding_assets.service.keys import ApiKey
    from resources.limits.quota import Quota

app = typer.Typer(help="Create, list and revoke keys of the HTTP service.", no_args_is_help=True)

Limit = Annotated[int | None, typer.Option(min=1, help="At most so many a minute.")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose key it is; no two have the same name.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="What it is good for: embed, search, search:COLLECTION, metrics or all; may be "
            "given several times. By default embed and search.",
            metavar="SCOPE",
        ),
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option(
            help="12h, 90d or 8w from now, or a date or time such as 2030-12-31, UTC. By default "
            "never.",
            metavar="WHEN",
        ),
    ] = None,
    requests: Limit = None,
    texts: Limit = None,
    tokens: Limit = None,
) -> None:
    """Create a key, and print it: the only time that anybody sees it."""
    from embedding_assets.service.keys import DEFAULT_SCOPES, create_key, parse_expiry
    from resources.limits.quota import Quota

    with errors_for_people():
        key, presented = create_key(
            _path(),
            name,
            scope or DEFAULT_SCOPES,
            Quota(requests, texts, tokens),
            parse_expiry(expires, _now()) if expires is not None else None,
        )
    _explain(
        f"The API key '{key.name}' ({key.id}) is good for {', '.join(sorted(key.scopes))}, with "
        f"{_limits(key.limits) or 'no limits of its own'}, and "
        + (f"expires at {key.expires.isoformat()}." if key.expires else "does not expire.")
        + " It is shown this once; only a hash of it is kept:"
    )
    typer.echo(presented)


@app.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List all keys, revoked and expired ones too; their secrets are not known."""
    from embedding_assets.service.keys import read_keys

    with errors_for_people():
        keys = read_keys(_path())
    if not keys and not as_json:
        _explain("There are no API keys. `embedding-assets keys create NAME` makes one.")
        return
    now = _now()
    print_rows([_row(key, now, as_json) for key in keys], as_json, "API keys")


@app.command()
def revoke(
    name_or_id: Annotated[str, typer.Argument(help="As `keys list` shows it.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Revoke a key for good; services that run notice within two seconds."""
    from embedding_assets.service.keys import find_key, revoke_key

    with errors_for_people():
        key = find_key(_path(), name_or_id)
        if not yes and key.revoked is None:
            question = f"Revoke the API key '{key.name}' ({key.id}) for good?"
            typer.confirm(plain(question), abort=True, err=True)
        key = revoke_key(_path(), key.id)
    _explain(f"Revoked the API key '{key.name}' ({key.id}).")


def _path() -> Path:
    from embedding_assets.collection.environment import read_environment
    from embedding_assets.service.keys import FILE_NAME

    return read_environment().data_dir / FILE_NAME


def _row(key: "ApiKey", now: datetime, as_json: bool) -> dict[str, Any]:
    scopes = sorted(key.scopes)
    return {
        "name": key.name,
        "id": key.id,
        "scopes": scopes if as_json else ", ".join(scopes),
        "limits": asdict(key.limits) if as_json else _limits(key.limits),
        "created": key.created if as_json else _short(key.created),
        "expires": key.expires if as_json else _short(key.expires),
        "state": key.state(now),
    }


def _limits(limits: "Quota") -> str | None:
    """The limits in words; None if there are none."""
    said = [f"{limit:,} {what}" for what, limit in asdict(limits).items() if limit is not None]
    return f"{', '.join(said)} a minute" if said else None


def _short(time: datetime | None) -> str | None:
    return time and f"{time.astimezone(timezone.utc):%Y-%m-%d %H:%M}"


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _explain(text: str) -> None:
    """Beside the output, which holds nothing but what was asked for."""
    typer.echo(plain(text), err=True)

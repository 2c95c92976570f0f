"""API keys: made and revoked in one file, and found there by what a request presents.

A key is `ea_<id>_<secret>`. The file holds its id and a hash of its secret, never the secret. A
revoked key stays in it, so that its id in an old log still has a name, and so that a service whose
last key was revoked does not take itself for one without keys.
"""

import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import shlex
import string
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from dateutil.parser import isoparse
from filelock import FileLock
from pydantic import AfterValidator, AwareDatetime, ConfigDict, Field, TypeAdapter, ValidationError

from resources.atomic_write import atomic_write
from resources.errors import InvalidInputError, NotFoundError
from resources.limits.quota import Quota

_log = logging.getLogger(__name__)

FILE_NAME = "api_keys.json"
"""In the data folder."""
DEFAULT_SCOPES = frozenset({"embed", "search"})
_ID = r"[a-z0-9]{8}"
_KEY = re.compile(rf"ea_(?P<id>{_ID})_(?P<secret>[A-Za-z0-9_-]{{43}})")
_KEY_LENGTH = len("ea_") + 8 + len("_") + 43
_SECRET_BYTES = 32
_SCOPE = re.compile(r"embed|search(:[A-Za-z][A-Za-z0-9_]*)?|metrics|all")
_LONGEST_NAME = 64
_NO_LIMITS = Quota()
_NO_HASH = "0" * 64
_SECONDS_BETWEEN_LOOKS = 1.0

State = Literal["active", "expired", "revoked"]
_Signature = tuple[int, int, int]
"""Of a file: time of the last change in nanoseconds, size, inode."""


def without_secrets(text: str) -> str:
    """A text for people in which no key is whole: somebody may have sent one in a wrong place."""
    return _KEY.sub(lambda key: f"ea_{key['id']}_…", text)


def parse_scope(text: str) -> str:
    """A scope, as it is.

    Raises:
        InvalidInputError: there is none of that name.
    """
    if not _SCOPE.fullmatch(text):
        raise InvalidInputError(
            f"A scope is embed, search, search:COLLECTION, metrics or all; got {text!r}."
        )
    return text


def parse_expiry(text: str, now: datetime) -> datetime:
    """When a key expires, in UTC.

    Args:
        text: a time from now such as 12h, 90d or 8w, or a date or time in ISO 8601; of a date the
            beginning, and UTC if it names no offset.
        now: with its offset.

    Raises:
        InvalidInputError: it is neither, or not in the future.
    """
    try:
        if match := re.fullmatch(r"([0-9]+)([hdw])", text):
            unit = {"h": "hours", "d": "days", "w": "weeks"}[match[2]]
            expires = now.replace(microsecond=0) + timedelta(**{unit: int(match[1])})
        elif re.match(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
            expires = isoparse(text)
            if expires.tzinfo is None:
                expires = expires.replace(tzinfo=timezone.utc)
        else:
            raise ValueError
        expires = expires.astimezone(timezone.utc)
    except (ValueError, OverflowError):
        raise InvalidInputError(
            "An expiry looks like 12h, 90d or 8w from now, or like 2030-12-31 or "
            f"2030-12-31T18:00Z; got {text!r}."
        ) from None
    if expires <= now:
        raise InvalidInputError(f"A key expires in the future; {text!r} is {expires.isoformat()}.")
    return expires


@dataclass(frozen=True)
class ApiKey:
    """One key, without its secret.

    Attributes:
        scopes: what it is good for: embed, search, search:COLLECTION, metrics, all.
        secret_sha256: in hexadecimal digits.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    id: Annotated[str, Field(pattern=rf"^{_ID}$")]
    name: str
    secret_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] = field(repr=False)
    scopes: frozenset[Annotated[str, AfterValidator(parse_scope)]]
    limits: Quota
    created: AwareDatetime
    expires: AwareDatetime | None = None
    revoked: AwareDatetime | None = None

    def allows(self, scope: str) -> bool:
        """Whether the key is good for a scope; `search` covers every `search:COLLECTION`."""
        return not self.scopes.isdisjoint((scope, scope.partition(":")[0], "all"))

    def state(self, now: datetime) -> State:
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "active"


def read_keys(path: Path) -> list[ApiKey]:
    """All keys of a file, revoked and expired ones too; none if there is no file.

    Raises:
        InvalidInputError: it cannot be read, or holds something else.
    """
    return _read(path)[1]


def create_key(
    path: Path,
    name: str,
    scopes: Iterable[str] = DEFAULT_SCOPES,
    limits: Quota = _NO_LIMITS,
    expires: datetime | None = None,
) -> tuple[ApiKey, str]:
    """Adds a key to a file, which is made if there is none.

    Returns:
        The key, and what a client has to present, which nobody can tell again.

    Raises:
        InvalidInputError: another key has the name, it is none, or the file holds something else.
    """
    _check_name(name)
    checked = frozenset(map(parse_scope, scopes))
    with _locked(path):
        keys = read_keys(path)
        if any(name == key.id or (name == key.name and not key.revoked) for key in keys):
            raise InvalidInputError(
                f"There is an API key '{name}' already. Choose another name, or revoke it first: "
                f"`embedding-assets keys revoke {shlex.quote(name)}`."
            )
        secret = secrets.token_urlsafe(_SECRET_BYTES)
        key = ApiKey(
            id=_new_id({one for key in keys for one in (key.id, key.name)} | {name}),
            name=name,
            secret_sha256=_hash(secret),
            scopes=checked,
            limits=limits,
            created=_utc_now().replace(microsecond=0),
            expires=expires,
        )
        _write(path, [*keys, key])
    return key, f"ea_{key.id}_{secret}"


def find_key(path: Path, name_or_id: str) -> ApiKey:
    """The key of an id, or the one of a name that is not revoked.

    Args:
        path: of the file.
        name_or_id: a whole key means its id.

    Raises:
        NotFoundError: there is none.
    """
    presented = _KEY.fullmatch(name_or_id)
    wanted = presented["id"] if presented else name_or_id
    # The last one of a name is the only one that may not be revoked.
    for key in reversed(read_keys(path)):
        if wanted == key.id or (wanted == key.name and not presented):
            return key
    # What begins like a key may hold the secret of one.
    named = "of that key" if wanted.startswith("ea_") else f"'{wanted}'"
    raise NotFoundError(f"There is no API key {named}; `embedding-assets keys list` shows all.")


def revoke_key(path: Path, name_or_id: str) -> ApiKey:
    """Revokes a key for good; services notice within a second or two.

    Raises:
        NotFoundError: there is none of that name or id.
        InvalidInputError: it is revoked already.
    """
    with _locked(path):
        key = find_key(path, name_or_id)
        if key.revoked is not None:
            raise InvalidInputError(
                f"The API key '{key.name}' ({key.id}) was revoked at {key.revoked.isoformat()}."
            )
        revoked = replace(key, revoked=_utc_now().replace(microsecond=0))
        _write(path, [revoked if one.id == key.id else one for one in read_keys(path)])
    return revoked


class KeyRing:
    """The keys of a file, as a service asks for them at each request; safe between threads.

    A change of the file is noticed within a second. If it can be read no more, the last keys hold.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: _utc_now(),
    ) -> None:
        """Reads the keys.

        Args:
            path: of the file; there may be none.
            clock: in seconds, for when to look at the file again.
            now: with its offset, for what has expired.

        Raises:
            InvalidInputError: the file cannot be read, or holds something else.
        """
        self._path = path
        self._clock = clock
        self._now = now
        self._lock = threading.Lock()
        self._broken = False
        self._signature, keys = _read(path)
        self._keys = {key.id: key for key in keys}
        self._look_again = clock() + _SECONDS_BETWEEN_LOOKS

    @property
    def any(self) -> bool:
        """Whether there are keys, be they expired or revoked: then requests need one."""
        self._look()
        return bool(self._keys) or self._broken

    def find(self, presented: str) -> ApiKey | None:
        """The key that a request presents; None if it is none, has expired or was revoked."""
        self._look()
        if not isinstance(presented, str) or len(presented) != _KEY_LENGTH:
            return None
        match = _KEY.fullmatch(presented)
        if match is None:
            return None
        key = self._keys.get(match["id"])
        # Compared in any case, and in constant time: the answer's time tells of no id nor hash.
        expected = _NO_HASH if key is None else key.secret_sha256
        same = hmac.compare_digest(_hash(match["secret"]), expected)
        if key is None or not same or key.state(self._now()) != "active":
            return None
        return key

    def _look(self) -> None:
        """Reads the file again if it has changed; looks once a second at most."""
        now = self._clock()
        if now < self._look_again or not self._lock.acquire(blocking=False):
            return
        try:
            self._look_again = now + _SECONDS_BETWEEN_LOOKS
            if not self._broken and _signature_of(self._path) == self._signature:
                return
            signature, keys = _read(self._path)
            if signature is None and self._signature is not None:
                # Without keys a service may be open to all: nobody says so by losing a file.
                raise InvalidInputError(f"{self._path} is there no more.")
            self._signature, self._keys = signature, {key.id: key for key in keys}
            self._broken = False
        except (InvalidInputError, OSError) as error:
            if not self._broken:
                _log.warning(f"The API keys that were read last go on to hold. {error}")
            self._broken = True
        finally:
            self._lock.release()


@dataclass(frozen=True)
class _File:
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    keys: list[ApiKey]


_FILE = TypeAdapter(_File)


def _read(path: Path) -> tuple[_Signature | None, list[ApiKey]]:
    """The keys of a file, and which version of it they are of; None if there is no file."""
    wrong = ""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            keys = _FILE.validate_json(file.read()).keys
        if len({key.id for key in keys}) == len(keys):
            return _signature(status), keys
        wrong = "two keys have the same id"
    except FileNotFoundError:
        return None, []
    except OSError as error:
        wrong = error.strerror or type(error).__name__
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, one['loc'])) or 'the file'}: {one['msg']}"
            for one in error.errors(include_input=False, include_url=False)
        )
    # Outside of `except`: that error holds what the file does.
    raise InvalidInputError(
        f"{path} should hold API keys as `embedding-assets keys` writes them, but cannot be read "
        f"({wrong}). Put it right or restore it; who moves it away has to create all keys anew."
    )


def _write(path: Path, keys: Iterable[ApiKey]) -> None:
    records = [{**asdict(key), "scopes": sorted(key.scopes)} for key in keys]
    with atomic_write(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump({"keys": records}, file, indent=2, default=datetime.isoformat)
            file.flush()
            os.fsync(descriptor)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Nobody else changes the file meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f"{path.name}.lock"), mode=0o600):
        yield


def _signature(status: os.stat_result) -> _Signature:
    return status.st_mtime_ns, status.st_size, status.st_ino


def _signature_of(path: Path) -> _Signature | None:
    try:
        return _signature(path.stat())
    except FileNotFoundError:
        return None


def _hash(secret: str) -> str:
    # A slow hash is for what people choose: 256 random bits nobody tries out, however fast it is,
    # and each request pays for it.
    return hashlib.sha256(secret.encode()).hexdigest()


def _new_id(taken: set[str]) -> str:
    while True:
        id = "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))
        if id not in taken:
            return id


def _check_name(name: str) -> None:
    if (
        not 1 <= len(name) <= _LONGEST_NAME
        or not name.isprintable()
        or name != name.strip()
        or name.startswith(("ea_", "-"))
    ):
        raise InvalidInputError(
            f"The name of an API key has 1 to {_LONGEST_NAME} printable characters, and begins "
            "neither with ea_, as keys do, nor with a hyphen."
        )


def _utc_now() -> datetime:
    return datetime.now(timezone.utc)

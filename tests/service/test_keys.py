"""API keys: what a request presents is found, or not, and no secret is anywhere."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from embedding_assets.service import keys as keys_module
from embedding_assets.service.keys import (
    ApiKey,
    KeyRing,
    create_key,
    find_key,
    parse_expiry,
    parse_scope,
    read_keys,
    revoke_key,
)
from resources.errors import InvalidInputError, NotFoundError
from resources.limits.quota import Quota
from tests.support.checkout import PROJECT

NOW = datetime(2030, 5, 1, 12, tzinfo=timezone.utc)


class Clock:
    """Of the looks at the file."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "api_keys.json"


def secret_of(presented: str) -> str:
    return presented[len("ea_12345678_") :]


# --- What is found --------------------------------------------------------------------------------


def test_a_key_is_found_with_all_that_was_given_to_it(path: Path) -> None:
    limits = Quota(60, None, 10_000)
    expires = datetime.now(timezone.utc) + timedelta(days=1)
    made, presented = create_key(path, "Büro 7", ["search:peps", "embed"], limits, expires)
    _, other = create_key(path, "other")
    found = KeyRing(path).find(presented)
    assert found == made
    assert (made.name, made.limits, made.expires) == ("Büro 7", limits, expires)
    assert made.scopes == {"search:peps", "embed"}
    second = KeyRing(path).find(other)
    assert second is not None
    assert (second.name, second.limits, second.expires) == ("other", Quota(), None)
    assert second.scopes == {"embed", "search"}


def test_a_key_has_an_id_and_a_secret_of_256_random_bits(path: Path) -> None:
    made = [create_key(path, f"key {number}") for number in range(20)]
    assert len({key.id for key, _ in made}) == len({secret_of(shown) for _, shown in made}) == 20
    for key, presented in made:
        assert presented.startswith(f"ea_{key.id}_")
        assert len(secret_of(presented)) == 43  # 32 bytes in base64


def hostile(presented: str) -> Iterator[object]:
    other = "A" if presented[-1] != "A" else "B"
    yield from ("", "ea_", "ea__", "ea_12345678_", "null", "../../etc/passwd", "\0" * 55)
    yield from (presented[:-1], presented[1:], presented + "A", presented[:-1] + other)
    yield from (f" {presented}", f"{presented}\n", presented[:-1] + "\n", presented.upper())
    yield from (presented[:-1] + "é", presented[:-1] + "\ud800", "é" * 55, "\U0001f511" * 55)
    yield f"ea_unknown0_{secret_of(presented)}"
    yield "ea_١٢٣٤٥٦٧٨_" + secret_of(presented)  # digits, but not ASCII ones
    yield from (presented * 100_000, "ea_" + "_" * 10_000_000)
    yield from (None, 7, presented.encode(), [presented])


def test_whatever_is_presented_is_a_key_or_none(path: Path) -> None:
    _, presented = create_key(path, "a")
    ring = KeyRing(path)
    for one in hostile(presented):
        assert ring.find(one) is None  # pyright: ignore[reportArgumentType]
    assert ring.find(presented) is not None


def test_hashes_are_compared_in_constant_time_for_an_unknown_id_too(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, presented = create_key(path, "a")
    ring, compared = KeyRing(path), []
    digest = keys_module.hmac.compare_digest

    def compare(a: str, b: str) -> bool:
        compared.append((len(a), len(b)))
        return digest(a, b)

    monkeypatch.setattr(keys_module.hmac, "compare_digest", compare)
    for one in (presented, presented[:-1] + "~", f"ea_unknown0_{secret_of(presented)}"):
        ring.find(one)
    assert compared == [(64, 64)] * 2


@pytest.mark.parametrize(
    ("scopes", "allowed", "refused"),
    [
        (["search"], ["search", "search:peps"], ["embed", "metrics", "all"]),
        (["search:peps"], ["search:peps"], ["search", "search:pep", "search:peps2", "embed"]),
        (["embed", "metrics"], ["embed", "metrics"], ["search", "search:embed", "all"]),
        (["all"], ["embed", "search", "search:peps", "metrics", "all"], []),
    ],
)
def test_a_scope_covers_what_it_names(
    scopes: list[str], allowed: list[str], refused: list[str], path: Path
) -> None:
    key, _ = create_key(path, "a", scopes)
    assert [scope for scope in allowed + refused if key.allows(scope)] == allowed


def test_a_key_that_has_expired_is_none(path: Path) -> None:
    now = [NOW]
    _, presented = create_key(path, "a", expires=NOW + timedelta(hours=1))
    ring = KeyRing(path, now=lambda: now[0])
    now[0] += timedelta(minutes=59)
    assert ring.find(presented)
    now[0] += timedelta(minutes=1)
    assert ring.find(presented) is None
    assert ring.any, "the service does not open because all keys have expired"
    assert [key.state(now[0]) for key in read_keys(path)] == ["expired"]


# --- While a service runs -------------------------------------------------------------------------


def test_a_ring_that_is_open_notices_what_is_created_and_revoked(path: Path) -> None:
    clock = Clock()
    ring = KeyRing(path, clock=clock)
    assert not ring.any
    key, presented = create_key(path, "a")
    clock.now += 1
    assert ring.any
    assert ring.find(presented) == key
    revoke_key(path, "a")
    clock.now += 1
    assert ring.find(presented) is None
    assert ring.any, "the service does not open because its last key was revoked"


def test_a_ring_looks_at_the_file_once_a_second_and_reads_only_what_has_changed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, reads = [], []
    look, read = keys_module._signature_of, keys_module._read
    monkeypatch.setattr(keys_module, "_signature_of", lambda path: looks.append(1) or look(path))
    monkeypatch.setattr(keys_module, "_read", lambda path: reads.append(1) or read(path))
    _, presented = create_key(path, "a")
    clock = Clock()
    reads.clear()
    ring = KeyRing(path, clock=clock)
    for _ in range(3):
        assert all(ring.find(presented) for _ in range(100))
        clock.now += 1
    assert (len(looks), len(reads)) == (2, 1)
    os.utime(path, ns=(0, 0))
    ring.find(presented)
    assert (len(looks), len(reads)) == (3, 2)


def _remove(path: Path) -> None:
    path.unlink()


def _damage(path: Path) -> None:
    path.write_text(path.read_text()[:-20])


def _make_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


BREAK = [_remove, _damage, _make_a_folder]


@pytest.mark.parametrize("broken", BREAK)
def test_a_file_that_breaks_leaves_the_keys_as_they_were_and_warns_once(
    broken: Callable[[Path], None], path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    key, presented = create_key(path, "a")
    ring, content = KeyRing(path, clock=clock), path.read_text()
    broken(path)
    for _ in range(5):
        clock.now += 1
        assert ring.find(presented) == key
        assert ring.any
    assert len(caplog.messages) == 1
    assert str(path) in caplog.text
    assert secret_of(presented) not in caplog.text
    assert key.secret_sha256 not in caplog.text
    if path.is_dir():
        path.rmdir()
    path.write_text(content)
    revoke_key(path, "a")
    clock.now += 1
    assert ring.find(presented) is None
    assert len(caplog.messages) == 1
    broken(path)
    clock.now += 1
    assert ring.any
    assert len(caplog.messages) == 2, "it is another time"


def test_a_first_file_that_is_broken_does_not_leave_a_service_open(path: Path) -> None:
    clock = Clock()
    ring = KeyRing(path, clock=clock)
    path.parent.mkdir()
    path.write_text("{")
    clock.now += 1
    assert ring.any


def _with(**changes: object) -> Callable[[dict], object]:
    return lambda content: {"keys": [{**content["keys"][0], **changes}]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda _: [], "the file"),
        (lambda _: {}, "keys"),
        (lambda content: {"keys": content["keys"] * 2}, "two keys have the same id"),
        (lambda content: {**content, "planted": 1}, "planted"),
        (_with(scopes=["serach"]), "keys.0.scopes"),
        (_with(secret_sha256="planted"), "keys.0.secret_sha256"),
        (_with(only_from="10.0.0.0/8"), "keys.0.only_from"),
        (_with(limits={"request": 5}), "keys.0.limits"),
        (_with(limits={"requests": -5}), "keys.0.limits"),
        (_with(expires="soon"), "keys.0.expires"),
        (_with(expires="2030-01-01T00:00:00"), "keys.0.expires"),
    ],
)
def test_a_file_that_is_not_as_it_should_be_is_refused_at_the_start_and_says_where(
    change: Callable[[dict], object], said: str, path: Path
) -> None:
    key, _ = create_key(path, "a")
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(InvalidInputError) as caught:
        KeyRing(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)
    assert key.secret_sha256 not in str(caught.value)
    assert caught.value.__context__ is None, "a traceback would show what the file holds"
    with pytest.raises(InvalidInputError):
        create_key(path, "b")


def test_a_file_that_cannot_be_read_is_refused_at_the_start(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(InvalidInputError, match=r"Is a directory"):
        KeyRing(path)


# --- The file -------------------------------------------------------------------------------------


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def test_only_its_owner_reads_the_file_which_holds_no_secret(path: Path) -> None:
    with umask(0):
        made = [create_key(path, f"key {number}") for number in range(2)]
        revoke_key(path, "key 0")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {file.name for file in path.parent.iterdir()} <= {path.name, f"{path.name}.lock"}
    for key, presented in made:
        assert key.id in path.read_text()
        assert secret_of(presented) not in path.read_text()


def test_a_write_that_fails_leaves_the_file_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_key(path, "a")
    before = path.read_text()

    def fails(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(keys_module.os, "fsync", fails)
    with pytest.raises(OSError, match="no space"):
        create_key(path, "b")
    assert path.read_text() == before
    assert {file.name for file in path.parent.iterdir()} <= {path.name, f"{path.name}.lock"}


CREATE = """
import sys
from pathlib import Path
from embedding_assets.service.keys import create_key
print("ready", flush=True)
sys.stdin.readline()
for number in range(20):
    print(create_key(Path(sys.argv[1]), f"{sys.argv[2]} {number}")[1])
"""


def test_processes_that_create_keys_at_once_lose_none(path: Path) -> None:
    command = [sys.executable, "-c", CREATE, str(path)]
    processes = [
        subprocess.Popen(
            [*command, name],
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    assert [process.stdout and process.stdout.readline() for process in processes] == [
        "ready\n"
    ] * 2
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    presented = [key for process in processes for key in process.communicate()[0].split()]
    assert [process.returncode for process in processes] == [0, 0]
    ring = KeyRing(path)
    assert len(read_keys(path)) == len(presented) == 40
    assert all(map(ring.find, presented))


# --- Names, ids, expiries -------------------------------------------------------------------------


def test_no_two_keys_have_a_name_until_one_is_revoked(path: Path) -> None:
    first, presented = create_key(path, "a b")
    for name in ("a b", first.id):
        with pytest.raises(InvalidInputError, match=r"There is an API key .* already"):
            create_key(path, name)
    assert revoke_key(path, "a b").id == first.id
    with pytest.raises(InvalidInputError, match=first.id):
        create_key(path, first.id)
    second, again = create_key(path, "a b")
    assert KeyRing(path).find(presented) is None
    assert KeyRing(path).find(again) == second
    assert revoke_key(path, "a b").id == second.id
    states = [key.state(NOW) for key in read_keys(path)]
    assert states == ["revoked", "revoked"]


@pytest.mark.parametrize("name", ["", " a", "a\n", "a\x1b[2J", "x" * 65, "ea_12345678", "-a"])
def test_a_name_is_printable_and_no_key(name: str, path: Path) -> None:
    with pytest.raises(InvalidInputError, match="The name of an API key") as caught:
        create_key(path, name)
    assert "ea_12345678" not in str(caught.value)
    assert not path.exists()


def test_a_key_is_revoked_by_name_by_id_or_by_itself_and_only_once(path: Path) -> None:
    made = [create_key(path, name) for name in "abcd"]
    assert revoke_key(path, "a") == find_key(path, made[0][0].id)
    assert revoke_key(path, made[1][0].id).name == "b"
    assert revoke_key(path, made[2][1]).name == "c"
    assert [key.name for key in read_keys(path) if key.revoked is None] == ["d"]
    for name_or_id in ("a", made[1][0].id):
        with pytest.raises(InvalidInputError, match="was revoked at"):
            revoke_key(path, name_or_id)
    with pytest.raises(NotFoundError, match="There is no API key 'nobody'"):
        revoke_key(path, "nobody")
    with pytest.raises(NotFoundError) as caught:
        revoke_key(path, made[3][1][:-1])
    assert secret_of(made[3][1])[:-1] not in str(caught.value)


@pytest.mark.parametrize("scope", ["", "al", "search:", "search:a b", "search:7", "Embed", "all "])
def test_a_scope_that_is_none_says_which_there_are(scope: str) -> None:
    with pytest.raises(InvalidInputError, match="embed, search, search:COLLECTION, metrics or all"):
        parse_scope(scope)


@pytest.mark.parametrize(
    ("text", "expires"),
    [
        ("12h", datetime(2030, 5, 2, 0)),
        ("90d", datetime(2030, 7, 30, 12)),
        ("2w", datetime(2030, 5, 15, 12)),
        ("2030-12-31", datetime(2030, 12, 31)),
        ("2030-12-31T18:30", datetime(2030, 12, 31, 18, 30)),
        ("2030-12-31T18:30Z", datetime(2030, 12, 31, 18, 30)),
        ("2030-12-31T18:30+02:00", datetime(2030, 12, 31, 16, 30)),
    ],
)
def test_an_expiry_is_a_time_from_now_or_a_date(text: str, expires: datetime) -> None:
    assert parse_expiry(text, NOW) == expires.replace(tzinfo=timezone.utc)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "90",
        "d",
        "-1d",
        "1.5d",
        "٩d",
        "soon",
        "2030",
        "2030-13-01",
        "2030-12-31x",
        "9999999999w",
    ],
)
def test_an_expiry_that_is_none_says_what_one_looks_like(text: str) -> None:
    with pytest.raises(InvalidInputError, match=r"looks like 12h, 90d or 8w .* 2030-12-31"):
        parse_expiry(text, NOW)


@pytest.mark.parametrize("text", ["0d", "2030-05-01", "2030-05-01T12:00Z", "0001-01-01"])
def test_an_expiry_is_in_the_future(text: str) -> None:
    with pytest.raises(InvalidInputError, match="expires in the future"):
        parse_expiry(text, NOW)


def test_a_key_shows_neither_its_secret_nor_its_hash(path: Path) -> None:
    key, presented = create_key(path, "a")
    ring = KeyRing(path)
    ring.find(presented)
    assert isinstance(key, ApiKey)
    for shown in (repr(key), str(key), repr(ring), repr(vars(ring))):
        assert secret_of(presented) not in shown
        assert key.secret_sha256 not in shown

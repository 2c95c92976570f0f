"""Collections that are defined otherwise while they are served."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from embedding_assets.api import Collection
from embedding_assets.artifacts.keys import vectors_key
from embedding_assets.artifacts.schemas import VECTORS
from embedding_assets.service.index_spaces import IndexSpaces
from embedding_assets.service.project_watch import ProjectWatch
from resources.embedders.base import Embedder
from resources.identity.embedding_space import EmbeddingSpace
from tests.support.chunk_rows import NAME, OTHER, SPACE, batch, ids, reader
from tests.support.fakes import CountingEmbedder, fake_vector
from tests.support.pipeline import Pipeline, write_jsonl
from tests.support.service import GatedEmbedder, RunningService, wait_until

QUESTION = "The northern lights"
YEARS = ("2022", "2023", "2024")


def note(number: int, text: str = "is about") -> dict[str, Any]:
    year = YEARS[number % 3]
    return {
        "id": f"note-{number}",
        "text": f"Note {number} {text} {year}.",
        "date": f"{year}-03-01",
    }


def pipeline(folder: Path, embedder: Embedder, fallback: Embedder | None = None) -> Pipeline:
    source = folder / "notes.jsonl"
    if not source.exists():
        write_jsonl(source, [note(number) for number in range(12)])
    settings = {
        "source": {"fields": {"timestamp": "date"}},
        "partitions": {"by": "year", "start": "2022-01-01"},
        "description": embedder.space.model,  # as a YAML file with another model differs
    }
    return Pipeline(folder, str(source), embedder=embedder, settings=settings, fallback=fallback)


class Definitions:
    """What stands in the files, and a service that watches them."""

    def __init__(self, folder: Path, *collections: Collection) -> None:
        self.collections, self.broken, self.version = collections, list[str](), 0
        self.loads = self.looks = 0
        self.running = RunningService(*collections, folder=folder)
        self.watch = ProjectWatch(self.running.service, self.load, self.look, since=0)
        self.running.service.watch = self.watch.run

    def load(self) -> tuple[dict[str, Collection], list[str]]:
        self.loads += 1
        return {one.name: one for one in self.collections}, self.broken

    def look(self) -> int:
        self.looks += 1
        return self.version

    def write(self, *collections: Collection, broken: list[str] | None = None) -> None:
        self.collections, self.broken = collections, broken or []
        self.version += 1

    def hits(self, k: int = 12) -> list[dict[str, Any]]:
        return self.answer(k)["hits"]

    def answer(self, k: int = 12) -> dict[str, Any]:
        answer = self.running.post("/collections/corpus/search", query=QUESTION, k=k)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def models(self) -> set[str]:
        """Those that a search asks."""
        return {space["model"] for space in self.answer(1)["spaces"]}

    def notes(self) -> str:
        answer = self.running.client.get("/ready")
        assert answer.status_code == 200
        return " ".join(
            part.get("reason", "")
            for name, part in answer.json()["parts"].items()
            if name.startswith("definition")
        )


@contextmanager
def defined(folder: Path, *collections: Collection) -> Iterator[Definitions]:
    definitions = Definitions(folder, *collections)
    with definitions.running:
        yield definitions


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    monkeypatch.setattr("embedding_assets.service.project_watch._SECONDS_BETWEEN_LOOKS", 0.02)
    monkeypatch.setattr("embedding_assets.service.readiness._SECONDS_OF_PARTS", 0.0)
    monkeypatch.setattr("embedding_assets.service.service._SECONDS_BETWEEN_LOADS", 0.05)


def cosine(text: str, dimension: int) -> float:
    return float(fake_vector(QUESTION, dimension) @ fake_vector(text, dimension))


@pytest.mark.slow
def test_each_partition_is_found_in_the_space_it_was_last_embedded_in_and_no_question_fails(
    tmp_path: Path,
) -> None:
    old = pipeline(tmp_path, CountingEmbedder(model="old"))
    new = pipeline(tmp_path, CountingEmbedder(model="new", dimension=16))
    old.run()
    ended = Event()
    with defined(tmp_path, old.opened) as definitions, ThreadPoolExecutor(2) as pool:

        def ask_on() -> int:
            asked = 0
            while not ended.is_set() or not asked:
                for hit in definitions.hits():
                    length = 32 if hit["partition"] not in done else None
                    lengths = [length] if length else [16, 32]  # the service may be a moment late
                    scores = [cosine(hit["text"], each) for each in lengths]
                    assert any(hit["score"] == pytest.approx(one, abs=1e-5) for one in scores)
                asked += 1
            return asked

        done: set[str] = set()
        asking = [pool.submit(ask_on) for _ in range(2)]
        try:
            definitions.write(new.opened)
            service = definitions.running.service
            wait_until(lambda: service.collections["corpus"].resources.embedder is new.embedder)
            assert definitions.hits() == as_json(old.opened.search(QUESTION, 12))
            assert definitions.models() == {"old"}
            # One note has gone and another has changed by the time that its year is embedded anew.
            write_jsonl(
                tmp_path / "notes.jsonl",
                [note(number, "now says" if number == 4 else "is about") for number in range(10)]
                + [note(number) for number in range(11, 24)],
            )
            done.add("2023")
            new.run("2023", "2023")
            wait_until(lambda: definitions.models() == {"old", "new"})
            wait_until(lambda: all(hit["document_id"] != "note-10" for hit in definitions.hits(50)))
            found = {hit["document_id"]: hit for hit in definitions.hits(50)}
            there = {n for n in range(24) if n < 12 or n % 3 == 1} - {10}
            assert {*found} == {f"note-{number}" for number in there}
            assert "now says" in found["note-4"]["text"]
            for hit in found.values():
                length = 16 if hit["partition"] == "2023" else 32
                expected = cosine(hit["text"], length)
                assert hit["score"] == pytest.approx(expected, abs=1e-5)
            shown = definitions.running.client.get("/collections/corpus/documents?id=note-4").json()
            assert "now says" in shown["chunks"][0]["text"]
            (listed,) = definitions.running.client.get("/collections").json()["collections"]
            assert listed["models"] == ["new", "old"]
            done |= {*YEARS}
            new.run()
            wait_until(lambda: {*service.servers} == {new.embedder.space.id})
            assert definitions.hits(50) == as_json(new.opened.search(QUESTION, 50))
            assert definitions.models() == {"new"}
            told = definitions.running.client.get("/metrics").text
            assert 'model="new"' in told
            assert 'model="old"' not in told
        finally:
            ended.set()
        assert all(one.result() for one in asking)


def as_json(hits: Any) -> Any:
    """As the service tells them; without the parts that say most."""

    class Same(list[Any]):
        def __eq__(self, told: object) -> bool:
            assert isinstance(told, list)
            return [(one["chunk_id"], one["text"], one["score"]) for one in told] == list(self)

    return Same((hit.chunk_id, hit.text, hit.score) for hit in hits)


@pytest.mark.slow
def test_a_model_that_is_taken_out_answers_those_who_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unloaded = Event()
    monkeypatch.setattr(GatedEmbedder, "unload", lambda _: unloaded.set())
    before = GatedEmbedder(model="old")
    old = pipeline(tmp_path, before)
    new = pipeline(tmp_path, CountingEmbedder(model="new", dimension=16))
    old.run()
    new.run()
    with defined(tmp_path, old.opened) as definitions, ThreadPoolExecutor(1) as pool:
        service = definitions.running.service
        (server,) = service.servers.values()
        gate = before.close()
        waiting = pool.submit(definitions.running.post, "/embed", text="long", model="old")
        wait_until(lambda: gate.calls)
        definitions.write(new.opened)
        wait_until(lambda: {*service.servers} == {new.embedder.space.id})
        assert not server.is_idle
        refused = definitions.running.post("/embed", text="more", model="old")
        assert refused.status_code == 404
        with server.in_use():  # as who is just about to ask
            gate.open.set()
            answer = waiting.result()
            looks = definitions.looks
            wait_until(lambda: definitions.looks > looks + 2)
            assert not unloaded.is_set()
        wait_until(unloaded.is_set)
    assert answer.status_code == 200
    assert (np.array(answer.json()["embedding"], np.float32) == fake_vector("long", 32)).all()
    assert old.cache.statistics()[0].entries  # written before it was closed


def test_a_file_that_is_broken_meanwhile_is_told_and_what_it_said_before_is_served(
    tmp_path: Path,
) -> None:
    made = pipeline(tmp_path, CountingEmbedder(model="old"))
    made.run()
    with defined(tmp_path, made.opened) as definitions:
        expected = definitions.hits()
        definitions.write(broken=["defs.yaml, line 3: embeder is no setting."])
        wait_until(lambda: "embeder is no setting" in definitions.notes())
        assert definitions.hits() == expected
        definitions.write(made.opened)
        wait_until(lambda: not definitions.notes())
        definitions.write()
        ask = lambda: definitions.running.post("/collections/corpus/search", query="a")  # noqa: E731
        wait_until(lambda: ask().status_code == 404)
        assert ask().json()["error"]["code"] == "collection_not_found"
        definitions.write(made.opened)
        wait_until(lambda: ask().status_code == 200)
        assert definitions.hits() == expected


@pytest.mark.slow
def test_as_long_as_a_new_model_cannot_be_loaded_the_old_one_answers(tmp_path: Path) -> None:
    old = pipeline(tmp_path, CountingEmbedder(model="old"))
    bad = pipeline(tmp_path, CountingEmbedder(model="bad", fails_always=True))
    good = pipeline(tmp_path, CountingEmbedder(model="good"))
    old.run()
    good.run()
    with defined(tmp_path, old.opened) as definitions:
        expected = definitions.hits()
        definitions.write(bad.opened)
        wait_until(lambda: "cannot embed" in definitions.notes())
        assert "as it was defined before" in definitions.notes()
        assert definitions.hits() == expected
        assert definitions.running.post("/embed", text="a").json()["model"] == "old"
        definitions.write(good.opened)
        wait_until(lambda: definitions.models() == {"good"})
        assert not definitions.notes()
        assert definitions.hits() == as_json(good.opened.search(QUESTION, 12))


@pytest.mark.slow
def test_with_the_old_model_as_fallback_the_pipeline_moves_the_rows(tmp_path: Path) -> None:
    before = CountingEmbedder(model="old")
    old = pipeline(tmp_path, before)
    both = pipeline(tmp_path, CountingEmbedder(model="new"), fallback=before)
    old.run()
    with defined(tmp_path, old.opened) as definitions:
        definitions.write(both.opened)
        service = definitions.running.service
        wait_until(lambda: service.collections["corpus"].resources.embedder is both.embedder)
        assert definitions.hits() == as_json(old.opened.search(QUESTION, 12))
        both.run("2022", "2022")
        wait_until(lambda: definitions.models() == {"old", "new"})
        assert definitions.hits(50) == as_json(both.opened.search(QUESTION, 50))


def test_a_former_space_is_asked_for_the_partitions_that_it_alone_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedding_assets.service.index_spaces._TIME_SHARE", 0)
    old = pipeline(tmp_path, CountingEmbedder(model="a", dimension=16))
    new = pipeline(tmp_path, CountingEmbedder(model="b", dimension=16))
    store, spaces, served = old.store, IndexSpaces(), new.opened

    def asked() -> dict[str, set[str]]:
        """The spaces, and the partitions that are found in each."""
        spaces.promote(served)
        query = fake_vector(QUESTION, 16)
        return {
            embedder.space.model: {
                hit.partition
                for hit in store.search(
                    NAME, embedder.space, query, 50, not_partitions=index.not_partitions
                )
            }
            for index, embedders in spaces.ask(served).items()
            for embedder in embedders
        }

    def embed(partition: str, number: int, space: EmbeddingSpace = OTHER) -> None:
        store.replace(NAME, space, reader(batch(ids(number), partition)))

    for number, partition in enumerate(("2021", "2022", "2023", "2024")):
        embed(partition, number, SPACE)
    spaces.changed(old.opened, served)
    everything = {"2021", "2022", "2023", "2024"}
    assert asked() == {"a": everything}
    store.create_table(NAME, OTHER)  # as a run does first
    assert asked() == {"a": everything}
    embed("2023", 2)  # the collection begins with 2022
    assert asked() == {"b": {"2023"}, "a": {"2022", "2024"}}
    embed("2022", 1)
    assert asked() == {"b": {"2022", "2023"}, "a": {"2024"}}
    nothing_in(new, "2024", old.embedder.space)
    assert asked() == {"b": {"2022", "2023"}, "a": {"2024"}}
    nothing_in(new, "2024", OTHER)
    assert asked() == {"b": {"2022", "2023"}}
    assert spaces.former_spaces == set()


def nothing_in(made: Pipeline, partition: str, space: EmbeddingSpace) -> None:
    """Leaves what a run leaves that found no text in a partition."""
    with made.artifacts.writing(vectors_key(NAME, partition)) as path:
        schema = VECTORS.with_metadata({"space": space.to_json()})
        pq.write_table(schema.empty_table(), path)


def test_a_table_in_a_space_that_nothing_names_is_not_asked(tmp_path: Path) -> None:
    unbuilt = pipeline(tmp_path, CountingEmbedder(model="own"))
    unbuilt.store.replace(NAME, OTHER, reader(batch(ids(1))))
    with RunningService(unbuilt.opened, folder=tmp_path) as running:
        answer = running.post("/collections/corpus/search", query=QUESTION)
        assert answer.status_code == 404
        assert "build corpus" in answer.json()["error"]["message"]


def test_files_are_read_once_they_have_rested_and_at_sighup_at_once(tmp_path: Path) -> None:
    made = pipeline(tmp_path, CountingEmbedder())
    definitions = Definitions(tmp_path, made.opened)

    async def look() -> list[int]:
        loads = []
        for version, at_once in ((0, 0), (1, 0), (2, 0), (2, 0), (2, 0), (3, 1), (3, 0)):
            definitions.version = version
            await definitions.watch.look(at_once=bool(at_once))
            loads.append(definitions.loads)
        return loads

    assert asyncio.run(look()) == [0, 0, 0, 1, 1, 2, 2]

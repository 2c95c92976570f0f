"""The local embedder equals sentence-transformers, on many layouts of models, and stays light."""

import gc
import json
import os
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import resources.embedders.local
from resources.embedders.cosine import MIN_COSINE
from resources.embedders.local import LocalEmbedder
from resources.embedders.local_model import model_compiler, openvino_model, torch_model
from resources.embedders.local_model.model_compiler import (
    REFERENCE_TEXTS,
    SHORT_REFERENCE_TEXTS,
    Manifest,
)
from resources.embedders.local_model.model_files import FileHashes, find_model
from resources.embedders.local_model.openvino_model import SelfCheck, check_vectors
from resources.embedders.local_model.token_batches import (
    TextTokenizer,
    padded_length,
    token_batches,
)
from resources.embedders.local_model.torch_model import TorchModel
from resources.errors import EmbeddingError, ModelError, SettingsError, TextError
from tests.support.checkout import PROJECT
from tests.support.data import XQUAD, json_lines, snapshot
from tests.support.models import (
    LAYOUTS,
    SENTENCES,
    SIZES,
    compile_here,
    cosines,
    reference,
    save_model,
    save_transformer,
)


def run_python(program: str, *arguments: str) -> dict[str, Any]:
    """Runs a program in a process of its own; it prints JSON."""
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "HF_HUB_OFFLINE": "1"}
    finished = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, env=environment
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


# --- the default model ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def default(model_cache) -> LocalEmbedder:
    return LocalEmbedder(model_cache=str(model_cache), device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def real_texts() -> list[str]:
    paragraphs = json_lines(XQUAD / "corpus.jsonl.gz")[:40]
    long = snapshot("2020-01-01")[:8]
    return [row["text"][:300] for row in paragraphs] + [row["text"][:3000] for row in long]


def test_default_model_equals_sentence_transformers_on_real_and_odd_texts(default, real_texts):
    texts = SENTENCES + real_texts
    batch = default.embed(texts)
    assert cosines(batch.vectors, reference(default, texts)).min() >= 1 - 1e-6
    assert (batch.truncated_tokens > 0).any()


def test_default_model_in_bf16_is_near_sentence_transformers(model_cache, default, real_texts):
    if not openvino_model._processor()[1]:
        pytest.skip("this processor has no bf16")
    embedder = LocalEmbedder(model_cache=str(model_cache), device="cpu", precision="bf16")
    batch = embedder.embed(real_texts)
    assert "in bf16" in embedder.describe()
    assert cosines(batch.vectors, reference(default, real_texts)).min() >= 0.9999


def test_space_of_the_default_model_is_the_one_that_stored_vectors_carry(default):
    # If this fails, every vector stored so far would be embedded again.
    assert default.space.id == "31ece2cc6bc18c75"
    assert default.space.dimension == 384
    assert default.space.max_tokens == 256
    assert default.space.normalized
    assert default.special_tokens == 2
    assert default.max_text_tokens == 254


def test_tokens_are_counted_with_special_tokens_and_cuts_without(default):
    batch = default.embed(["one two three", "", "word " * 254, "word " * 300])
    assert batch.tokens.tolist() == [5, 2, 256, 256]
    assert batch.truncated_tokens.tolist() == [0, 0, 0, 46]
    assert batch.tokens.dtype == batch.truncated_tokens.dtype == np.int32


def test_no_texts_give_no_vectors_and_load_no_model(tmp_path):
    embedder = LocalEmbedder(model_cache=str(tmp_path))
    assert embedder.embed([]).vectors.shape == (0, 384)
    assert "not loaded" in embedder.describe()


def test_text_that_cannot_be_tokenized_is_named(default):
    with pytest.raises(EmbeddingError, match=r"Text 1 of 2 .*tokenize"):
        default.embed(["fine", "broken \ud800 surrogate"])
    assert default.embed(["fine"]).vectors.shape == (1, 384)


def test_what_is_unloaded_leaves_the_memory_unless_another_embedder_uses_it(model_cache):
    # With a setting of their own, so that no other test has loaded the same.
    one, other = (
        LocalEmbedder(model_cache=str(model_cache), precision="fp32", batch_tokens=640)
        for _ in range(2)
    )
    vectors = one.embed(["text"]).vectors
    assert (other.embed(["text"]).vectors == vectors).all()
    model = weakref.ref(one._loaded.model)
    one.unload()
    gc.collect()
    assert model() is not None
    other.unload()
    gc.collect()
    assert model() is None
    assert (one.embed(["text"]).vectors == vectors).all()


HEAVY = ("torch", "transformers", "sentence_transformers", "openvino", "huggingface_hub")


def test_space_and_tokenizer_import_nothing_heavy(tmp_path):
    program = f"""
import json, sys
from resources.embedders.local import LocalEmbedder
embedder = LocalEmbedder(model_cache=sys.argv[1])
assert embedder.space.dimension == 384 and embedder.max_text_tokens == 254
assert embedder.new_tokenizer().encode("a").ids and embedder.describe()
print(json.dumps([name for name in {HEAVY} if name in sys.modules]))
"""
    assert run_python(program, str(tmp_path)) == []


def test_fresh_process_loads_what_was_compiled_and_gives_identical_vectors(default):
    expected = default.embed(SENTENCES[:6]).vectors
    program = """
import json, sys
from resources.embedders.local import LocalEmbedder
embedder = LocalEmbedder(model_cache=sys.argv[1], device="cpu", precision="fp32")
vectors = embedder.embed(json.loads(sys.argv[2])).vectors
heavy = [name for name in ("torch", "transformers", "sentence_transformers") if name in sys.modules]
print(json.dumps({"heavy": heavy, "vectors": vectors.tolist()}))
"""
    result = run_python(program, default.model_cache, json.dumps(SENTENCES[:6]))
    assert result["heavy"] == []
    np.testing.assert_array_equal(np.array(result["vectors"], dtype=np.float32), expected)


# --- small models of many layouts -----------------------------------------------------------------


@pytest.fixture
def compiled_here(monkeypatch):
    """The compiler runs in this process, which has paid for torch already, and is counted."""
    calls: list[Path] = []

    def run(files: Any, output: Path) -> None:
        calls.append(output)
        compile_here(files, output)

    monkeypatch.setattr(openvino_model, "_run_compiler", run)
    return calls


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_equals_sentence_transformers(layout, tmp_path, compiled_here):
    folder = save_model(tmp_path / "model", **LAYOUTS[layout])
    embedder = LocalEmbedder(
        model=str(folder), model_cache=str(tmp_path / "cache"), device="cpu", precision="fp32"
    )
    batch = embedder.embed(SENTENCES)
    expected = reference(embedder, SENTENCES)
    assert "OpenVINO" in embedder.describe()
    assert batch.vectors.shape == expected.shape == (len(SENTENCES), embedder.space.dimension)
    np.testing.assert_allclose(batch.vectors, expected, atol=2e-4, rtol=1e-3)
    assert cosines(batch.vectors, expected).min() >= 1 - 1e-6
    norms_are_one = bool(np.allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-3))
    assert embedder.space.normalized == norms_are_one
    assert batch.tokens.max() == embedder.space.max_tokens == 48
    assert compiled_here


@pytest.mark.usefixtures("compiled_here")
def test_attention_is_spelt_out_for_openvino(tmp_path):
    folder = save_model(tmp_path / "model")
    LocalEmbedder(model=str(folder), model_cache=str(tmp_path / "cache"), device="cpu").embed(["a"])
    (compiled,) = (tmp_path / "cache").glob("*/model.xml")
    kinds = [layer.get("type") for layer in ElementTree.parse(compiled).iter("layer")]
    assert kinds.count("SoftMax") == SIZES["num_hidden_layers"]
    assert "ScaledDotProductAttention" not in kinds


def test_attention_is_left_alone_where_tokens_do_not_see_all_of_a_text():
    from transformers import BertConfig, ModernBertConfig, MPNetConfig, XLMRobertaConfig

    full = [BertConfig(), XLMRobertaConfig()]
    other = [BertConfig(is_decoder=True), ModernBertConfig(), MPNetConfig(), None]
    assert all(map(model_compiler.has_full_attention, full))
    assert not any(map(model_compiler.has_full_attention, other))


@pytest.mark.usefixtures("compiled_here")
def test_plain_transformers_model_gets_mean_pooling_and_is_cut_at_max_tokens(tmp_path):
    folder = save_transformer(tmp_path / "model")
    embedder = LocalEmbedder(
        model=str(folder),
        model_cache=str(tmp_path / "cache"),
        device="cpu",
        precision="fp32",
        max_tokens=12,
    )
    batch = embedder.embed(SENTENCES)
    assert cosines(batch.vectors, reference(embedder, SENTENCES)).min() >= 1 - 1e-6
    assert batch.tokens.max() == 12
    assert not embedder.space.normalized


def test_prompts_go_before_texts_by_role_and_count(tmp_path, compiled_here):
    prompts = {"query": "the question: ", "passage": "a text: "}
    folder = save_model(tmp_path / "model", prompts=prompts)
    cache = str(tmp_path / "cache")
    embedder = LocalEmbedder(model=str(folder), model_cache=cache, device="cpu", precision="fp32")
    texts = SENTENCES[:8]
    for role, prompt in (("document", "a text: "), ("query", "the question: ")):
        batch = embedder.embed(texts, role)  # type: ignore[arg-type]
        assert cosines(batch.vectors, reference(embedder, texts, prompt)).min() >= 1 - 1e-6
    tokenizer = embedder.new_tokenizer()
    prompt_tokens = len(tokenizer.encode("a text: ", add_special_tokens=False))
    assert embedder.max_text_tokens == 48 - 2 - prompt_tokens

    other = LocalEmbedder(
        model=str(folder), model_cache=cache, device="cpu", precision="fp32", document_prompt="it: "
    )
    vectors = other.embed(texts).vectors
    assert cosines(vectors, reference(other, texts, "it: ")).min() >= 1 - 1e-6
    assert other.space.id != embedder.space.id
    assert len(compiled_here) == 1  # prompts are no reason to compile again


def test_model_that_openvino_cannot_run_goes_through_torch_and_says_so(
    tmp_path, compiled_here, monkeypatch
):
    def refuse(*_: Any) -> list[str]:
        raise model_compiler.UnsupportedModelError("an operation nobody knows")

    monkeypatch.setattr(model_compiler, "_convert", refuse)
    folder = save_model(tmp_path / "model", prompts={"document": "a text: "})
    cache = str(tmp_path / "cache")
    embedder = LocalEmbedder(model=str(folder), model_cache=cache, device="cpu", batch_tokens=64)
    batch = embedder.embed(SENTENCES)
    expected = reference(embedder, SENTENCES, "a text: ")
    assert cosines(batch.vectors, expected).min() >= 1 - 1e-6
    assert "torch" in embedder.describe()
    assert "an operation nobody knows" in embedder.describe()
    resources.embedders.local._load.cache_clear()
    LocalEmbedder(model=str(folder), model_cache=cache, device="cpu").embed(["again"])
    assert len(compiled_here) == 1  # that it cannot be compiled is remembered


def test_batch_too_large_for_the_device_is_halved(tmp_path, monkeypatch):
    embedder = LocalEmbedder(
        model=str(save_model(tmp_path / "model")), model_cache=str(tmp_path / "cache")
    )
    model = TorchModel(embedder._files, embedder.space, "cpu", "fp32", 10_000)
    encode, sizes = model._encode, []

    def small_device(texts: list[str], prompt: str) -> np.ndarray:
        sizes.append(len(texts))
        if len(texts) > 5:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return encode(texts, prompt)

    monkeypatch.setattr(model, "_encode", small_device)
    vectors = model.embed(SENTENCES).vectors
    assert cosines(vectors, reference(embedder, SENTENCES)).min() >= 1 - 1e-6
    assert max(sizes) == len(SENTENCES)


# --- the compiled model ---------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_compile_once(tmp_path):
    folder = save_model(tmp_path / "model")
    program = """
import json, sys
from resources.embedders.local_model import openvino_model
from resources.embedders.local import LocalEmbedder
compiled = []
run = openvino_model._run_compiler
openvino_model._run_compiler = lambda *a: (compiled.append(1), run(*a))
embedder = LocalEmbedder(model=sys.argv[1], model_cache=sys.argv[2], device="cpu")
vectors = embedder.embed(["hello", "world"]).vectors
print(json.dumps({"compiled": len(compiled), "vectors": vectors.tolist()}))
"""
    results: list[dict[str, Any]] = []

    def work() -> None:
        results.append(run_python(program, str(folder), str(tmp_path / "cache")))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(result["compiled"] for result in results) == [0, 1]
    assert results[0]["vectors"] == results[1]["vectors"]
    assert not list((tmp_path / "cache").glob(".*")), "the compiler left something behind"


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def overwrite(file: Path) -> None:
    file.write_bytes(b"\x3e" * file.stat().st_size)


def delete(file: Path) -> None:
    file.unlink()


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> LocalEmbedder:
    """A small model, compiled."""
    folder = tmp_path_factory.mktemp("pristine")
    embedder = LocalEmbedder(
        model=str(save_model(folder / "model")),
        model_cache=str(folder / "cache"),
        device="cpu",
        precision="fp32",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openvino_model, "_run_compiler", compile_here)
        embedder.embed(["hello"])
    return embedder


def test_failure_to_read_the_vectors_surfaces_and_the_next_call_works(pristine, monkeypatch):
    def broken(_: Any) -> np.ndarray:
        raise ValueError("no output today")

    with monkeypatch.context() as patch:
        patch.setattr(openvino_model.OpenVINOModel, "_output", staticmethod(broken))
        with pytest.raises(TextError, match="no output today"):
            pristine.embed(SENTENCES)
    assert np.isfinite(pristine.embed(SENTENCES).vectors).all()


def test_failure_of_openvino_surfaces_and_the_next_call_works(pristine, monkeypatch):
    padded = TextTokenizer.padded

    def misshapen(self: TextTokenizer, *arguments: Any) -> dict[str, np.ndarray]:
        arrays = padded(self, *arguments)
        return arrays | {"attention_mask": arrays["attention_mask"][:, :0]}

    with monkeypatch.context() as patch:
        patch.setattr(TextTokenizer, "padded", misshapen)
        with pytest.raises(TextError):
            pristine.embed(SENTENCES)
    assert np.isfinite(pristine.embed(SENTENCES).vectors).all()


def test_a_batch_that_fails_spoils_no_other_call_at_that_time(pristine, monkeypatch):
    expected = pristine.embed(SENTENCES).vectors
    padded = TextTokenizer.padded

    def misshapen(self: TextTokenizer, *arguments: Any) -> dict[str, np.ndarray]:
        arrays = padded(self, *arguments)
        cut = threading.current_thread().name == "fails"
        return arrays | ({"attention_mask": arrays["attention_mask"][:, :0]} if cut else {})

    monkeypatch.setattr(TextTokenizer, "padded", misshapen)
    results: dict[int, np.ndarray] = {}
    failures: list[EmbeddingError] = []

    def work(number: int) -> None:
        results[number] = np.stack([pristine.embed(SENTENCES).vectors for _ in range(20)])

    def fail() -> None:
        for _ in range(3):
            try:
                pristine.embed(SENTENCES)
            except EmbeddingError as error:
                failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    threads.append(threading.Thread(target=fail, name="fails"))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [type(failure) for failure in failures] == [TextError] * 3
    assert len(results) == 3
    for vectors in results.values():
        np.testing.assert_allclose(vectors, np.broadcast_to(expected, vectors.shape), atol=1e-5)


@pytest.fixture
def damaged(pristine, tmp_path, monkeypatch) -> tuple[LocalEmbedder, Path, list[Path]]:
    """The same with a cache of its own, its compiled folder, and the calls of the compiler."""
    resources.embedders.local._load.cache_clear()
    cache = Path(shutil.copytree(pristine.model_cache, tmp_path / "cache"))
    (compiled,) = (path for path in cache.iterdir() if path.is_dir())
    good = Path(shutil.copytree(compiled, tmp_path / "good"))
    calls: list[Path] = []

    def compile_again(_: Any, output: Path) -> None:
        calls.append(output)
        shutil.copytree(good, output, dirs_exist_ok=True)

    monkeypatch.setattr(openvino_model, "_run_compiler", compile_again)
    embedder = LocalEmbedder(
        model=pristine.model, model_cache=str(cache), device="cpu", precision="fp32"
    )
    return embedder, compiled, calls


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.bin", truncate),
        ("model.bin", overwrite),
        ("model.xml", overwrite),
        ("reference.npy", overwrite),
        ("tokenizer.json", overwrite),
        ("manifest.json", truncate),
        ("manifest.json", delete),
    ],
)
def test_damaged_compiled_model_is_compiled_again(name, damage, pristine, damaged):
    embedder, compiled, calls = damaged
    shutil.rmtree(compiled / "blobs")  # else OpenVINO looks at nothing else
    damage(compiled / name)
    vectors = embedder.embed(SENTENCES).vectors
    np.testing.assert_allclose(vectors, pristine.embed(SENTENCES).vectors, atol=1e-5)
    assert len(calls) == 1
    assert not list(compiled.parent.glob(".*")), "the compiler left something behind"


@pytest.mark.parametrize("damage", [truncate, overwrite, delete])
def test_damaged_blob_does_no_harm(damage, pristine, damaged):
    embedder, compiled, _ = damaged
    (blob,) = compiled.glob("blobs/*.blob")
    damage(blob)
    vectors = embedder.embed(SENTENCES).vectors
    np.testing.assert_allclose(vectors, pristine.embed(SENTENCES).vectors, atol=1e-5)


def test_compiled_model_that_always_fails_its_self_check_is_not_used(damaged, monkeypatch):
    embedder, _, calls = damaged
    monkeypatch.setitem(MIN_COSINE, "fp32", 1.1)
    monkeypatch.setattr(torch_model, "TorchModel", lambda *_: "torch")
    assert "OpenVINO cannot run it: self-check" in embedder._loaded.note
    assert len(calls) == 1


def test_long_texts_of_the_self_check_are_for_the_first_start_on_a_machine(damaged, monkeypatch):
    embedder, compiled, _ = damaged
    checked: list[int] = []
    embed = openvino_model.OpenVINOModel.embed

    def counted(self: Any, texts: Any, prompt: str = "") -> Any:
        checked.append(len(texts))
        return embed(self, texts, prompt)

    def starts() -> list[int]:
        checked.clear()
        resources.embedders.local._load.cache_clear()
        embedder.model_copy().embed(["a text"])
        return checked[:-1]

    monkeypatch.setattr(openvino_model.OpenVINOModel, "embed", counted)
    everything, short = len(REFERENCE_TEXTS), SHORT_REFERENCE_TEXTS
    assert starts() == [short], "the record came with the copy"
    (compiled / "self_check.json").write_text('{"passed": "another machine"}')
    assert starts() == [everything]
    assert starts() == [short]


@pytest.mark.slow
def test_failed_compilation_is_explained_and_leaves_nothing(tmp_path):
    folder = save_model(tmp_path / "model")
    truncate(folder / "model.safetensors")
    cache = tmp_path / "cache"
    with pytest.raises(ModelError, match="sentence-transformers cannot load"):
        LocalEmbedder(model=str(folder), model_cache=str(cache), device="cpu").embed(["hello"])
    assert [path for path in cache.iterdir() if path.is_dir()] == []


class FakeModel:
    """A model of a given speed and deviation."""

    def __init__(self, speed: float, cosine: float = 1.0) -> None:
        self.speed, self.cosine = speed, cosine

    def tokens_per_second(self) -> float:
        return self.speed

    def self_check(self) -> SelfCheck:
        return SelfCheck("bf16", self.cosine)


@pytest.mark.parametrize(
    ("bf16", "chosen"),
    [
        (FakeModel(2000.0, 0.99995), "bf16"),
        (FakeModel(1050.0, 0.99995), "fp32"),
        (FakeModel(9000.0, 0.99), "fp32"),
    ],
)
def test_auto_takes_bf16_only_where_it_is_faster_and_near(bf16, chosen, tmp_path, monkeypatch):
    monkeypatch.setattr(openvino_model, "_processor", lambda: ("a processor", True))
    loaded: list[str] = []

    def load(precision: str) -> Any:
        loaded.append(precision)
        return {"fp32": FakeModel(1000.0), "bf16": bf16}[precision]

    assert openvino_model._choose_precision("auto", tmp_path, load)[0] == chosen
    assert loaded == ["fp32", "bf16"]
    assert openvino_model._choose_precision("auto", tmp_path, load)[0] == chosen
    assert loaded == ["fp32", "bf16"], "the race is run once for each processor"
    monkeypatch.setattr(openvino_model, "_processor", lambda: ("another processor", True))
    openvino_model._choose_precision("auto", tmp_path, load)
    assert loaded == ["fp32", "bf16"] * 2


@pytest.mark.parametrize("asked", ["auto", "bf16"])
def test_processor_without_bf16_runs_fp32_and_says_so(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(openvino_model, "_processor", lambda: ("a processor", False))

    def load(_: str) -> Any:
        raise AssertionError

    chosen, note = openvino_model._choose_precision(asked, tmp_path, load)
    assert chosen == "fp32"
    assert "no bf16" in note


def test_self_check_sees_direction_length_and_nan():
    truth = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    assert check_vectors("fp32", truth, truth).passed
    assert not check_vectors("fp32", truth * 1.5, truth).passed
    assert not check_vectors("fp32", truth[::-1], truth).passed
    broken = truth.copy()
    broken[2, 3] = np.nan
    assert not check_vectors("fp32", broken, truth).passed


# --- identity -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("small") / "model", prompts={"query": "q: "})


def space_id(folder: Path, cache: Path, **settings: Any) -> str:
    return LocalEmbedder(model=str(folder), model_cache=str(cache), **settings).space.id


def edit_json(path: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(change(content) or content), encoding="utf-8")


def test_copy_of_a_model_elsewhere_has_the_same_space(small, tmp_path):
    copy = Path(shutil.copytree(small, tmp_path / "elsewhere"))
    edit_json(
        copy / "config.json",
        lambda config: (
            config
            | {"_name_or_path": "x", "transformers_version": "4.1.0", "torch_dtype": "float16"}
        ),
    )
    edit_json(
        copy / "tokenizer.json",
        lambda tokenizer: (
            tokenizer | {"truncation": {"max_length": 9, "strategy": "LongestFirst", "stride": 0}}
        ),
    )
    edit_json(
        copy / "config_sentence_transformers.json",
        lambda config: config | {"__version__": {"sentence_transformers": "2.0.0"}},
    )
    assert space_id(copy, tmp_path) == space_id(small, tmp_path)


def test_layout_saved_by_old_versions_has_the_same_space(small, tmp_path):
    copy = Path(shutil.copytree(small, tmp_path / "old"))
    edit_json(
        copy / "modules.json",
        lambda modules: [
            module | {"type": "sentence_transformers.models." + module["type"].rsplit(".", 1)[-1]}
            for module in modules
        ],
    )
    (pooling,) = copy.glob("*_Pooling/config.json")
    pooling.write_text(
        json.dumps({"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True})
    )
    (copy / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": 48, "do_lower_case": False})
    )
    assert space_id(copy, tmp_path) == space_id(small, tmp_path)


def drop_normalize(copy: Path) -> None:
    edit_json(copy / "modules.json", lambda modules: modules[:-1])


def pool_by_cls(copy: Path) -> None:
    (pooling,) = copy.glob("*_Pooling/config.json")
    edit_json(pooling, lambda config: config | {"pooling_mode": "cls"})


def change_prompt(copy: Path) -> None:
    path = copy / "config_sentence_transformers.json"
    edit_json(path, lambda config: config | {"prompts": {"query": "other: "}})


def change_weights(copy: Path) -> None:
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "model.safetensors").write_bytes(content)


def change_architecture(copy: Path) -> None:
    edit_json(copy / "config.json", lambda config: config | {"num_attention_heads": 8})


def change_tokenizer(copy: Path) -> None:
    edit_json(copy / "tokenizer.json", lambda tokenizer: tokenizer | {"normalizer": None})


@pytest.mark.parametrize(
    "change",
    [
        drop_normalize,
        pool_by_cls,
        change_prompt,
        change_weights,
        change_architecture,
        change_tokenizer,
    ],
)
def test_space_changes_with_what_changes_vectors(change, small, tmp_path):
    copy = Path(shutil.copytree(small, tmp_path / "copy"))
    change(copy)
    assert space_id(copy, tmp_path) != space_id(small, tmp_path)


@pytest.mark.parametrize(
    "settings", [{"max_tokens": 20}, {"document_prompt": "d: "}, {"query_prompt": ""}]
)
def test_space_changes_with_settings_that_change_vectors(settings, small, tmp_path):
    assert space_id(small, tmp_path, **settings) != space_id(small, tmp_path)


@pytest.mark.parametrize(
    "settings", [{"device": "cuda"}, {"precision": "bf16"}, {"batch_tokens": 5}]
)
def test_space_is_the_same_on_any_device(settings, small, tmp_path):
    assert space_id(small, tmp_path, **settings) == space_id(small, tmp_path)


def test_hash_of_a_file_is_read_once_until_the_file_changes(tmp_path, monkeypatch):
    file, memory = tmp_path / "weights", tmp_path / "hashes.json"
    file.write_bytes(b"one")
    first = FileHashes(memory).sha256(file)
    with monkeypatch.context() as patch:
        patch.setattr("hashlib.sha256", None)
        assert FileHashes(memory).sha256(file) == first
    file.write_bytes(b"other")
    assert FileHashes(memory).sha256(file) != first
    memory.write_text("{broken")
    assert FileHashes(memory).sha256(file) != first


def test_a_file_that_changed_with_equal_size_and_time_is_hashed_again(tmp_path):
    file, new = tmp_path / "weights", tmp_path / "new"
    hashes = FileHashes(tmp_path / "hashes.json")
    file.write_bytes(b"one")
    new.write_bytes(b"two")
    for each in (file, new):
        os.utime(each, (0, 0))  # as reproducible archives and images have it
    first = hashes.sha256(file)
    new.replace(file)
    assert hashes.sha256(file) != first


def test_copy_from_the_hub_has_the_space_of_the_packaged_one(default, tmp_path):
    repository = tmp_path / "models--sentence-transformers--all-MiniLM-L6-v2"
    commit = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(find_model(default.model), repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    program = """
import json, os, sys
os.environ["HF_HUB_CACHE"] = sys.argv[1]
from resources.embedders.local import LocalEmbedder
from resources.embedders.local_model.model_files import find_model
embedder = LocalEmbedder(model="all-MiniLM-L6-v2", model_cache=sys.argv[1])
print(json.dumps([embedder.space.id, str(find_model(embedder.model))]))
"""
    space, folder = run_python(program, str(tmp_path))
    assert commit in folder
    assert space == default.space.id


# --- errors that speak to a person ----------------------------------------------------------------


def test_model_that_is_nowhere_is_explained(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EmbeddingError, match=r"nobody/nothing.*not in the Hugging Face cache"):
        find_model("nobody/nothing")
    with pytest.raises(EmbeddingError, match="does not exist"):
        find_model("./no/such/folder")


def custom_code(copy: Path) -> None:
    edit_json(copy / "modules.json", lambda modules: [modules[0] | {"type": "custom.Transformer"}])


def no_tokenizer(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()


def no_weights(copy: Path) -> None:
    (copy / "model.safetensors").unlink()


def broken_json(copy: Path) -> None:
    truncate(copy / "config.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (custom_code, "code of its own"),
        (no_tokenizer, "no tokenizer.json"),
        (no_weights, "no weights"),
        (broken_json, "not valid JSON"),
    ],
)
def test_broken_model_folder_is_explained(change, message, small, tmp_path):
    copy = Path(shutil.copytree(small, tmp_path / "copy"))
    change(copy)
    with pytest.raises(ModelError, match=message):
        space_id(copy, tmp_path)


@pytest.mark.parametrize("max_tokens", [2, 65])
def test_impossible_max_tokens_is_explained(max_tokens, small, tmp_path):
    with pytest.raises(EmbeddingError, match="takes 3 to 64 tokens"):
        space_id(small, tmp_path, max_tokens=max_tokens)


def test_packaged_model_with_other_weights_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("resources.embedders.local_model.model_files.PACKAGED_WEIGHTS", "0" * 64)
    with pytest.raises(EmbeddingError, match="is not the official"):
        _ = LocalEmbedder(model_cache=str(tmp_path)).space


# --- batches --------------------------------------------------------------------------------------


def test_rows_are_rounded_up_to_sixteen_tokens_where_that_is_nearly_free_and_the_model_takes_it():
    assert [padded_length(n, 512) for n in (0, 1, 16, 31, 47, 63, 65)] == [1, 1, 16, 31, 48, 64, 65]
    assert [padded_length(n, 512) for n in (232, 233, 240, 250)] == [232, 240, 240, 256]
    assert padded_length(250, 254) == 250


def test_batches_hold_every_row_once_within_the_budget():
    lengths = np.random.default_rng(0).integers(0, 300, size=500)
    batches = list(token_batches(lengths, 768))
    assert sorted(np.concatenate(batches)) == list(range(500))
    assert all(len(rows) * lengths[rows].max() <= 768 for rows in batches)
    assert [len(rows) for rows in token_batches(np.array([1000, 900]), 768)] == [1, 1]


def test_texts_that_fit_one_batch_are_cut_where_padding_and_batches_cost_least():
    random = np.random.default_rng(0)
    for _ in range(100):
        lengths = random.integers(1, 60, size=random.integers(1, 9))
        cost = random.integers(1, 30)
        batches = list(token_batches(lengths, 768, int(cost)))
        assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
        longest_first = np.sort(lengths)[::-1]
        paid = sum(cost + len(rows) * lengths[rows].max() for rows in batches)
        assert paid == min(
            sum(cost + longest_first[first] * (last - first) for first, last in pairwise(edges))
            for cuts in range(len(lengths))
            for inner in combinations(range(1, len(lengths)), cuts)
            for edges in [(0, *inner, len(lengths))]
        )
    (only,) = token_batches(np.array([40, 5, 20]), 768)  # where batches cost nothing by themselves
    assert len(only) == 3


def test_incomplete_folder_is_no_compiled_model(tmp_path):
    assert Manifest.read(tmp_path) is None
    Manifest(sizes={"model.bin": 3}).write(tmp_path)
    assert Manifest.read(tmp_path) is None
    (tmp_path / "model.bin").write_bytes(b"123")
    assert Manifest.read(tmp_path) == Manifest(sizes={"model.bin": 3})


# --- Shortened vectors ----------------------------------------------------------------------------


def test_lengths_to_cut_to_are_those_that_the_user_or_the_model_declares(tmp_path):
    folder = save_model(tmp_path / "model")
    undeclared = LocalEmbedder(model=str(folder), model_cache=str(tmp_path))
    assert list(undeclared.shorter_dimensions) == []
    config = folder / "config.json"
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"matryoshka_dimensions": [8, 16, 32]})
    )
    by_model = LocalEmbedder(model=str(folder), model_cache=str(tmp_path))
    by_user = by_model.model_copy(update={"matryoshka_dimensions": [4, 30]})
    assert list(by_model.shorter_dimensions) == [16, 8]
    assert list(by_user.shorter_dimensions) == [30, 4]
    # What is stored is whole, so that nothing is embedded again.
    assert undeclared.space == by_model.space == by_user.space


def test_length_to_cut_to_must_be_less_than_the_models(tmp_path):
    folder = save_model(tmp_path / "model")
    embedder = LocalEmbedder(
        model=str(folder), model_cache=str(tmp_path), matryoshka_dimensions=[8, 32]
    )
    with pytest.raises(SettingsError, match=r"less than the 32 dimensions of .*, got 32"):
        _ = embedder.space

"""Checks everything about a GPU in one go, prints a table and keeps it.

    python -m benchmarks.gpu [--quick] [--device cuda|cpu] [--output benchmarks/results]

For a MiniLM-, a bge-base- and a bge-large-sized BERT (random weights, but for MiniLM where its
package is installed): tokens a second with token ids at hand ("device") and from texts through the
worker process ("texts"), at 128 tokens and at mixed lengths; the deviation, 1 - cosine, from
sentence-transformers' own padded `encode` in fp32; the share of the fp16 matrix peak, measured
here; the token budget and the time to find it; and what happens when memory runs out.
`--device cpu` shows that the script itself works; its figures are not meant.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from resources.embedders.cosine import least_cosine
from resources.embedders.local import CALLS_PER_GPU
from resources.embedders.local_model.device_workers import (
    DeviceWorkers,
    WorkerSettings,
    visible_gpus,
)
from resources.embedders.local_model.model_compiler import load_sentence_transformer
from resources.embedders.local_model.model_files import FileHashes, ModelFiles, find_model
from resources.embedders.local_model.token_batches import TextTokenizer, TokenizedTexts
from resources.embedders.local_model.torch_model import TorchModel

WINDOW = 1024
"""Texts of one call, as the pipeline makes them by default."""


@dataclass(frozen=True)
class Size:
    """A BERT's shape, and what it must reach on an H200.

    Attributes:
        tokens_per_second: target at 128 tokens with token ids at hand; None for no target.
        peak_share: target share of the matrix peak; None for no target.
    """

    name: str
    hidden: int
    layers: int
    heads: int
    pooling: Literal["cls", "mean"]
    tokens_per_second: float | None = None
    peak_share: float | None = None

    def flops(self, lengths: np.ndarray) -> float:
        """Multiplications and additions of a forward pass: linear layers and attention."""
        tokens = float(lengths.sum())
        squares = float((lengths.astype(np.float64) ** 2).sum())
        return self.layers * (24 * self.hidden**2 * tokens + 4 * self.hidden * squares)


SIZES = (
    Size("MiniLM", 384, 6, 12, "mean", tokens_per_second=5e6),
    Size("bge-base-sized", 768, 12, 12, "cls", tokens_per_second=1.6e6),
    Size("bge-large-sized", 1024, 24, 16, "cls", peak_share=0.5),
)

MAX_DEVIATION = 1e-5


@dataclass(frozen=True)
class Figure:
    """One row of the table."""

    name: str
    value: str
    target: str = ""
    met: bool | None = None


def save_model(size: Size, folder: Path) -> Path:
    """The real MiniLM, or a BERT of this size with random weights and MiniLM's tokenizer."""
    if size.name == "MiniLM":
        return find_model("all-MiniLM-L6-v2")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules
    from transformers import AutoTokenizer, BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.hidden,
        initializer_range=0.05,  # of the size of trained weights, so that texts differ
    )
    plain = folder / f"{size.name}-plain"
    BertModel(config).save_pretrained(plain)
    AutoTokenizer.from_pretrained(find_model("all-MiniLM-L6-v2")).save_pretrained(plain)
    transformer = modules.Transformer(str(plain), max_seq_length=512)
    layers = [transformer, modules.Pooling(size.hidden, size.pooling), modules.Normalize()]
    SentenceTransformer(modules=layers, device="cpu").save(str(folder / size.name))
    return folder / size.name


def texts_of(tokenizer: Any, lengths: np.ndarray) -> list[str]:
    """Texts of so many tokens, special tokens included, out of words of one token each."""
    words = np.array(
        sorted(word for word in tokenizer.get_vocab() if word.isascii() and word.isalpha())
    )
    random = np.random.default_rng(0)
    return [" ".join(random.choice(words, max(0, length - 2))) for length in lengths]


def mixed_lengths(count: int, longest: int) -> np.ndarray:
    """Like chunks of documents: most of some hundred tokens, some of a few."""
    drawn = np.random.default_rng(1).lognormal(4.5, 0.9, count)
    return np.clip(drawn, 3, longest).astype(np.int32)


def tokens_per_second(
    embed: Callable[[Any], Any], windows: list[Any], tokens: int, repeats: int
) -> float:
    """The median of several passes over all windows, with as many calls at a time as the stream."""
    with ThreadPoolExecutor(CALLS_PER_GPU) as threads:
        list(threads.map(embed, windows))  # warm
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            list(threads.map(embed, windows))
            seconds.append(time.perf_counter() - start)
    return tokens / statistics.median(seconds)


def matrix_peak(device: str) -> float:
    """FLOP/s of a large matrix product of random numbers: in fp16 on CUDA, in fp32 on a CPU."""
    side = 8192 if device == "cuda" else 1024
    kind = torch.float16 if device == "cuda" else torch.float32
    left, right = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))

    def seconds(count: int) -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(count):
            _ = left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / count

    seconds(3)
    return 2 * side**3 / statistics.median(seconds(10) for _ in range(5))


def recovers_from_out_of_memory(model: TorchModel, window: TokenizedTexts) -> Figure:
    """Leaves the model a third of the memory that a batch takes, then gives it back."""
    engine = model._engine
    assert engine is not None
    expected = engine.embed(window)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    weights = torch.cuda.memory_allocated()
    engine.embed(window)
    batch = torch.cuda.max_memory_allocated() - weights
    total = torch.cuda.get_device_properties(0).total_memory
    before = engine.budget.tokens
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((weights + batch / 3) / total)
    try:
        equal = np.abs(engine.embed(window) - expected).max() < 1e-2
        shrunk = engine.budget.tokens
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    calls = 0
    while engine.budget.tokens < before and calls < 5_000:
        engine.embed(window)
        calls += 1
    met = bool(equal and shrunk < before and engine.budget.tokens == before)
    value = f"{before:,} → {shrunk:,} → {engine.budget.tokens:,} tokens after {calls} windows"
    return Figure("memory for a third of a batch: budget", value, "halved, then back", met)


def deviates(model: TorchModel, files: ModelFiles, device: str, texts: list[str]) -> Figure:
    """Compares with the padded fp32 reference."""
    exact = load_sentence_transformer(files, device)
    reference = exact.encode(texts, batch_size=8, show_progress_bar=False)
    deviation = 1 - least_cosine(model.embed(texts).vectors, reference)
    return Figure(
        "deviation from padded fp32, worst of all",
        f"{deviation:.1e}",
        f"≤ {MAX_DEVIATION:.0e}",
        deviation <= MAX_DEVIATION,
    )


def device_speed(
    size: Size, name: str, window: TokenizedTexts, speed: float, peak: float
) -> list[Figure]:
    """Speed with token ids at hand, in tokens a second and as a share of the matrix peak."""
    share = speed * size.flops(window.lengths) / len(window.tokens) / peak
    is_target = name == "128 tokens"
    wanted = size.tokens_per_second if is_target else None
    wanted_share = size.peak_share if is_target else None
    return [
        Figure(
            f"device, {name}",
            f"{speed:,.0f} tokens/s",
            f"≥ {wanted:,.0f}" if wanted else "",
            speed >= wanted if wanted else None,
        ),
        Figure(
            f"device, {name}: share of matrix peak",
            f"{share:.1%}",
            f"≥ {wanted_share:.0%}" if wanted_share else "",
            share >= wanted_share if wanted_share else None,
        ),
    ]


def measure(size: Size, folder: Path, device: str, quick: bool, peak: float) -> list[Figure]:
    files = ModelFiles(save_model(size, folder), size.name, max_tokens=512)
    space = files.space(FileHashes(folder / "hashes.json"))
    precision = "auto" if device == "cuda" else "fp32"
    count = WINDOW if device == "cuda" else 16
    windows, repeats = (4, 1) if quick else (32, 5)
    start = time.perf_counter()
    model = TorchModel(files, space, device, precision, None, folder / "found", packed=True)
    loaded = time.perf_counter() - start
    figures = [
        Figure("how", str(model)),
        Figure("load, self-check and budget search", f"{loaded:.1f} s"),
    ]
    if model._engine is None:
        return [*figures, Figure("packed", "no", "yes", False)]

    tokenizer = files.tokenizer()
    tokens = TextTokenizer(tokenizer, space.max_tokens, files.truncation_side)
    lengths = {
        "128 tokens": np.full(count, 128, np.int32),
        "mixed lengths": mixed_lengths(count, space.max_tokens),
    }
    texts = {name: texts_of(tokenizer, values) for name, values in lengths.items()}
    figures.append(
        deviates(model, files, device, texts["mixed lengths"][: 256 if device == "cuda" else 8])
    )
    for name, values in texts.items():
        window = tokens.tokenize(values)
        speed = tokens_per_second(
            model._engine.embed, [window] * windows, windows * len(window.tokens), repeats
        )
        figures += device_speed(size, name, window, speed, peak)
    if device == "cuda":
        figures.append(recovers_from_out_of_memory(model, tokens.tokenize(texts["128 tokens"])))
    del model

    # From texts, through the worker process, as the pipeline does it.
    if device == "cuda":
        torch.cuda.empty_cache()
    settings = WorkerSettings(files, space, device, precision, None, folder / "found", True)
    devices = dict(list(visible_gpus().items())[:1]) if device == "cuda" else {"CPU": {}}
    workers = DeviceWorkers(settings, devices)
    try:
        for name, values in texts.items():
            total = int(tokens.tokenize(values).lengths.sum())
            speed = tokens_per_second(workers.embed, [values] * windows, windows * total, repeats)
            figures.append(Figure(f"texts, {name}", f"{speed:,.0f} tokens/s"))
    finally:
        workers.close()
    return figures


def machine(device: str) -> dict[str, str]:
    packages = ("torch", "transformers", "sentence-transformers", "tokenizers", "numpy")
    gpu = torch.cuda.get_device_name() if device == "cuda" else "none: figures are not meant"
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "GPU": gpu,
        "CUDA": str(torch.version.cuda),
        "CPU": f"{platform.machine()}, {os.cpu_count()} cores",
        "Python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def markdown(about: dict[str, str], results: dict[str, list[Figure]]) -> str:
    lines = ["# Embedding on a GPU", "", "`python -m benchmarks.gpu`", ""]
    lines += [f"- {name}: {value}" for name, value in about.items()]
    lines += ["", "| model | figure | value | target | met |", "|---|---|---|---|---|"]
    met = {None: "", True: "yes", False: "**no**"}
    for model, figures in results.items():
        for figure in figures:
            row = (model, figure.name, figure.value, figure.target, met[figure.met])
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="few windows, one repeat")
    parser.add_argument("--only", choices=[size.name for size in SIZES], action="append")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    if options.device == "cuda" and not visible_gpus():
        parser.error("torch sees no CUDA device here")
    about = machine(options.device)
    peak = matrix_peak(options.device)
    results = {"matrix product": [Figure("measured peak", f"{peak / 1e12:,.1f} TFLOP/s")]}
    for size in SIZES:
        if options.only and size.name not in options.only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                results[size.name] = measure(
                    size, Path(folder), options.device, options.quick, peak
                )
            except Exception as error:  # the other models' figures are worth having
                results[size.name] = [Figure("failed", f"{type(error).__name__}: {error}")]
        print(*(f"{size.name}: {figure}" for figure in results[size.name]), sep="\n", flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    table = markdown(about, results)
    (options.output / "gpu.md").write_text(table, encoding="utf-8")
    rows = {model: [asdict(figure) for figure in figures] for model, figures in results.items()}
    (options.output / "gpu.json").write_text(
        json.dumps({"machine": about, "results": rows}, indent=1, ensure_ascii=False) + "\n",
        encoding="utf-8",
    )
    print(table)


if __name__ == "__main__":
    main()

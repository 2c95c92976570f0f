"""What can be set about a model on this machine, in a collection's YAML and in code."""

from typing import Literal

from pydantic import BaseModel, Field

from resources.embedders.base import ShorterDimensions
from resources.embedders.local_model.model_files import DEFAULT_MODEL

CPU_BATCH_TOKENS = 768


class LocalSettings(BaseModel):
    """Which sentence-transformers model runs, on what device, in what precision."""

    model: str = Field(
        default=DEFAULT_MODEL,
        description="A sentence-transformers model: its name on the Hugging Face hub, or a folder.",
    )
    revision: str | None = Field(
        default=None, description="Branch, tag or commit on the hub; by default the newest."
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        default="auto",
        description="'auto' takes CUDA if there is such a device, else the CPU. 'cuda' uses all "
        "GPUs that CUDA_VISIBLE_DEVICES shows, one process each.",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto",
        description="Arithmetic. 'auto' takes bf16 on a CPU where it is at least 10 % faster, and "
        "on CUDA the first of fp16, bf16 and fp32 whose vectors stay within cosine 0.9999 of fp32.",
    )
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Longest input in tokens, special tokens included; by default the model's own.",
    )
    document_prompt: str | None = Field(
        default=None, description="Text put before each document; by default the model's own."
    )
    query_prompt: str | None = Field(
        default=None, description="Text put before each query; by default the model's own."
    )
    matryoshka_dimensions: ShorterDimensions | None = Field(
        default=None,
        description="Lengths to which the service may cut the vectors, of a model that was trained "
        "for it; by default what the model's own config.json says. What is stored stays whole.",
    )
    batch_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Maximum tokens of a batch, padding to its longest text included; by default "
        f"{CPU_BATCH_TOKENS} on a CPU, and on a GPU what was found fastest there.",
    )

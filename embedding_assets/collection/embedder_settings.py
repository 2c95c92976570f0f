"""Who embeds a collection: the settings of each kind of embedder, and how one is made of them.

Each is the resource's own model and what belongs to the collection; a new kind is a class of these
and a row in both unions.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, Discriminator, Field, Tag, model_validator
from typing_extensions import Self

from embedding_assets.collection.base_settings import Settings
from resources.embedders.base import Embedder
from resources.embedders.local_settings import LocalSettings
from resources.embedders.openai.settings import OpenAISettings
from resources.errors import FailureKind


class EmbedderSettings(Settings):
    """What is set of every kind of embedder."""

    ELSEWHERE: ClassVar[Mapping[type[BaseModel], str]] = {}
    """What to do with a setting of another kind."""

    @model_validator(mode="before")
    @classmethod
    def _settings_are_of_this_kind(cls, given: Any) -> Any:
        for other, advice in cls.ELSEWHERE.items():
            fields = other.model_fields.keys() - cls.model_fields.keys()
            if isinstance(given, dict) and (foreign := sorted(fields & given.keys())):
                raise ValueError(f"{advice}: {', '.join(foreign)}")
        return given

    def with_paths(self, change: Callable[[str], str]) -> Self:
        """The same with every path changed."""
        del change
        return self


class _Local(LocalSettings, EmbedderSettings):
    """A sentence-transformers model on this machine."""

    ELSEWHERE: ClassVar = {
        OpenAISettings: "a server has these: set provider: openai, or leave them out"
    }

    provider: Literal["local"] = Field(
        default="local", description="A sentence-transformers model on this machine."
    )

    def build(self, models: Path) -> Embedder:
        """The embedder; `models` is the folder of compiled models."""
        from resources.embedders.local import LocalEmbedder

        own = self.model_dump(include=set(LocalSettings.model_fields))
        return LocalEmbedder(**own, model_cache=str(models))


class _OpenAI(OpenAISettings, EmbedderSettings):
    """A model that OpenAI serves, or another server with its interface."""

    ELSEWHERE: ClassVar = {
        LocalSettings: "a model on this machine has these: leave them out with provider: openai"
    }

    provider: Literal["openai"] = Field(description="OpenAI, or another server with its interface.")

    def build(self, models: Path) -> Embedder:
        """The embedder; it needs no folder of models."""
        from resources.embedders.openai.embedder import OpenAIEmbedder

        del models
        return OpenAIEmbedder(**self.model_dump(include=set(OpenAISettings.model_fields)))

    def with_paths(self, change: Callable[[str], str]) -> Self:
        return self.model_copy(update={"tokenizer": self.tokenizer and change(self.tokenizer)})


class FirstEmbedderSettings(EmbedderSettings):
    """What is set of the first embedder; a fallback that takes its place goes on with it."""

    flush_size: int = Field(
        default=2048,
        ge=1,
        description="Maximum number of texts that are in work and not yet durable in the cache: a "
        "crash costs no more.",
    )


class LocalEmbedderSettings(_Local, FirstEmbedderSettings):
    """A model on this machine that embeds a collection."""


class OpenAIEmbedderSettings(_OpenAI, FirstEmbedderSettings):
    """A server that embeds a collection."""


class FallbackSettings(EmbedderSettings):
    """When another embedder takes the first one's place."""

    when: tuple[FailureKind, ...] = Field(
        default=get_args(FailureKind),
        min_length=1,
        description="Failures of the embedder after which the fallback takes over for the rest of "
        "a run: 'unavailable' (a server does not answer, or refuses the key), 'out_of_memory', "
        "'error' (all others but wrong settings).",
    )
    same_space: bool = Field(
        default=False,
        description="The fallback serves the same model: its vectors go into the same index, once "
        "fixed texts have shown that they are the same. Otherwise it gets a table of its own.",
    )


class LocalFallbackSettings(_Local, FallbackSettings):
    """A model on this machine that takes the first embedder's place."""


class OpenAIFallbackSettings(_OpenAI, FallbackSettings):
    """A server that takes the first embedder's place."""


_BY_PROVIDER = Discriminator(
    lambda given: (
        given.get("provider", "local") if isinstance(given, dict) else getattr(given, "provider", 0)
    ),
    custom_error_type="provider",
    custom_error_message="provider must be 'local' or 'openai'",
)

AnyEmbedder = Annotated[
    Annotated[LocalEmbedderSettings, Tag("local")]
    | Annotated[OpenAIEmbedderSettings, Tag("openai")],
    _BY_PROVIDER,
]
AnyFallback = Annotated[
    Annotated[LocalFallbackSettings, Tag("local")]
    | Annotated[OpenAIFallbackSettings, Tag("openai")],
    _BY_PROVIDER,
]

"""What clients send, and what they get: the service's contract, shown at /docs."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from embedding_assets.bulk.jobs import ResultFormat
from resources.document_sources.formats.registry import FileFormat

Role = Literal["document", "query"]
_ROLE = 'Which of the model\'s prompts goes before it: "document", or "query" for a question.'
_COLLECTION = "Embed as this collection does; needed only if there are several models."
_DIMENSIONS = (
    "Cuts the vectors to their first so many values, of norm 1 again, where the model can be "
    "shortened; GET /v1/models says to what. By default they are whole."
)
_MODEL = "A model's name, a collection's, or the id of an embedding space."


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")


class EmbedText(_Asked):
    """One text to embed."""

    text: str = Field(examples=["one text"])
    role: Role = Field(default="document", description=_ROLE)
    collection: str | None = Field(default=None, description=_COLLECTION)
    model: str | None = Field(default=None, description=_MODEL)
    dimensions: int | None = Field(default=None, gt=0, description=_DIMENSIONS)


class EmbedTexts(_Asked):
    """Texts to embed."""

    texts: Annotated[list[str], Field(min_length=1, examples=[["one text", "another"]])]
    role: Role = Field(default="document", description=_ROLE)
    collection: str | None = Field(default=None, description=_COLLECTION)
    model: str | None = Field(default=None, description=_MODEL)
    dimensions: int | None = Field(default=None, gt=0, description=_DIMENSIONS)


class TextEmbedding(BaseModel):
    """Its vector.

    `cached`: the model did not have to work for it. `space`: only vectors of the same one can be
    compared.
    """

    embedding: list[float]
    cached: bool
    model: str
    dimensions: int
    space: str


class TextError(BaseModel):
    """Why a text has no vector."""

    index: int
    code: str
    message: str


class TextEmbeddings(BaseModel):
    """The vectors in the order of the texts; null where a text has none, for which `errors` says
    the reason."""

    embeddings: list[list[float] | None]
    count: int
    cached_count: int
    model: str
    dimensions: int
    space: str
    errors: list[TextError] = []


class JobOptions(_Asked):
    """How a file is embedded."""

    collection: str | None = Field(default=None, description=_COLLECTION)
    model: str | None = Field(default=None, description=_MODEL)
    role: Role = Field(default="document", description=_ROLE)
    id_field: str = Field(
        default="id",
        min_length=1,
        description="The field with a record's id; without one it gets the number of its line.",
    )
    text_field: str = Field(default="text", min_length=1, description="The field with its text.")
    result: ResultFormat = Field(default="parquet", description="How it is written.")


class JobRequest(JobOptions):
    """Texts to embed later, or where they are: either `texts` or a `url`."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"texts": ["one text", "another"]}]}
    )

    texts: Annotated[list[str], Field(min_length=1)] | None = None
    url: str | None = Field(
        default=None,
        min_length=1,
        description="A file, a folder or a pattern, where the service may read it.",
    )
    format: FileFormat | None = Field(
        default=None, description="Of what the URL names; by default as its ending tells."
    )


class EmbeddingJob(BaseModel):
    """How far a bulk job is: `embedded` of its `records` are known, with or without a vector."""

    id: str
    state: Literal["waiting", "embedding", "done", "failed", "cancelled"]
    collection: str
    role: Role
    records: int | None
    embedded: int
    cached: int | None
    failed: int | None
    message: str | None
    created_at: str
    result: str | None


class EmbeddingJobs(BaseModel):
    """Bulk jobs, the newest first."""

    jobs: list[EmbeddingJob]


_Tokens = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]


class OpenAIEmbeddingRequest(BaseModel):
    """OpenAI's request for embeddings."""

    model: str = Field(description=_MODEL)
    input: (
        str
        | Annotated[list[str], Field(min_length=1)]
        | _Tokens
        | Annotated[list[_Tokens], Field(min_length=1)]
    ) = Field(
        description="A text, texts, or tokens of the model's own vocabulary.",
        examples=["one text"],
    )
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, gt=0, description=_DIMENSIONS)
    user: str | None = None


class SearchQuery(_Asked):
    """What to look for in one collection."""

    query: str = Field(examples=["what to look for"])
    k: int = Field(default=5, ge=1, description="How many chunks.")
    exact: bool = Field(default=False, description="Compare with every chunk.")


class SearchQueries(SearchQuery):
    """What to look for in several collections."""

    collections: Annotated[list[str], Field(min_length=1)] | None = Field(
        default=None, description="Where; by default in all that are built."
    )


class FoundChunk(BaseModel):
    """One hit; `highlight` are the parts of the text that say most about the query."""

    score: float
    collection: str
    document_id: str
    title: str
    chunk_id: str
    chunk_number: int
    span: tuple[int, int]
    text: str
    highlight: list[tuple[int, int]]
    timestamp: str | None
    partition: str
    metadata: dict[str, Any]


class Space(BaseModel):
    """An embedding space that was asked."""

    id: str
    model: str


class Found(BaseModel):
    """What was found, best first.

    `fused`: several spaces were asked, so that ranks were fused and scores of hits from different
    ones cannot be compared.
    """

    query: str
    hits: list[FoundChunk]
    spaces: list[Space]
    fused: bool
    seconds: dict[str, float]


class Error(BaseModel):
    """Why it was not done: `code` is for programs, `message` for people."""

    message: str
    type: str
    code: str
    param: str | None = None
    retry_after: float | None = None


class ErrorAnswer(BaseModel):
    """Every answer that is no success; OpenAI's clients understand it."""

    error: Error

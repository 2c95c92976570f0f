"""What can be set about a server with OpenAI's interface, in a collection's YAML and in code."""

from urllib.parse import urlsplit

from pydantic import BaseModel, Field, field_validator, model_validator
from typing_extensions import Self

from resources.embedders.base import ShorterDimensions
from resources.embedders.openai.models import OPENAI_DIMENSIONS, OPENAI_KEY, OPENAI_URL


class OpenAISettings(BaseModel):
    """Of which server which model is asked, how, and within what limits."""

    model: str = Field(description="The model's name, such as text-embedding-3-small.")
    answers_as: str | None = Field(
        default=None,
        description="The model name with which the server answers, where it is another one than "
        "`model`: a deployment of Azure, an alias of LiteLLM, the path of a file.",
    )
    base_url: str = Field(
        default=OPENAI_URL,
        description="Where the server is, with the path up to /embeddings, for example "
        "http://127.0.0.1:8080/v1.",
    )
    dimensions: int | None = Field(
        default=None,
        ge=1,
        description="Length of the vectors, which the server is asked for; where it knows no such "
        "parameter, what it answers with. OpenAI's models have a default.",
    )
    matryoshka_dimensions: ShorterDimensions = Field(
        default=[],
        description="Lengths to which the service may cut the vectors, of a model that was trained "
        "for it. What is stored stays whole.",
    )
    api_key_env: str | None = Field(
        default=None,
        description="Name of the environment variable that holds the key, never the key itself; "
        f"by default {OPENAI_KEY} at OpenAI's own URL, and none elsewhere.",
    )
    server_name: str | None = Field(
        default=None,
        description="Stands for the server in the identity of the vectors, instead of its URL. "
        "Two servers may have the same name only if they compute the same vectors.",
    )
    tokenizer: str | None = Field(
        default=None,
        description="The model's tokenizer.json. By default tokens are estimated, about twice as "
        "many as OpenAI counts in English, so that every text fits.",
    )
    document_prompt: str = Field(default="", description="Text put before each document.")
    query_prompt: str = Field(default="", description="Text put before each query.")
    max_input_tokens: int = Field(
        default=8191, ge=1, description="Longest text in tokens; what is longer is cut."
    )
    max_request_inputs: int = Field(
        default=2048, ge=1, description="Maximum number of texts in a request."
    )
    max_request_tokens: int = Field(
        default=300_000, ge=1, description="Maximum tokens of a request, of all its texts together."
    )
    max_concurrency: int = Field(
        default=8,
        ge=1,
        description="Maximum number of requests in flight; how many adapts to the server.",
    )
    requests_per_minute: int | None = Field(
        default=None, ge=1, description="Limit of this key; by default what the server tells."
    )
    tokens_per_minute: int | None = Field(
        default=None, ge=1, description="Limit of this key; by default what the server tells."
    )
    rate_limit_window: float = Field(
        default=60.0, gt=0, description="Seconds for which these limits are meant."
    )
    max_dollars: float | None = Field(
        default=None,
        ge=0,
        description="Maximum that one run may spend; it stops before that. Prices are in the file "
        "that EMBEDDING_PRICES names.",
    )
    timeout: float = Field(
        default=60.0,
        gt=0,
        description="Seconds for one request. A request that takes longer is sent in parts, and so "
        "are later ones.",
    )
    max_wait: float = Field(
        default=900.0,
        ge=0,
        description="Seconds from the first failure of a request on until it is given up. A longer "
        "wait that the server asks for ends the run at once.",
    )
    query_max_wait: float = Field(
        default=10.0,
        gt=0,
        description="Seconds that a question may take in all, with what it waits for; then it "
        "fails.",
    )
    retry_delay: float = Field(
        default=0.5,
        gt=0,
        description="Seconds that the first retry waits at most; each further one twice as long.",
    )

    @field_validator("base_url")
    @classmethod
    def _url_has_no_secret(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("base_url must be a URL such as http://127.0.0.1:8080/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "base_url must hold no user, password or query: it is shown to people. "
                "Put the key into the environment variable that api_key_env names"
            )
        return url.rstrip("/")

    @field_validator("api_key_env")
    @classmethod
    def _variable_is_a_name(cls, name: str | None) -> str | None:
        if name is not None and not name.isidentifier():
            raise ValueError(
                f"api_key_env must be the name of an environment variable, such as {OPENAI_KEY}, "
                "not the key itself"
            )
        return name

    @model_validator(mode="after")
    def _length_of_vectors_is_known(self) -> Self:
        most = OPENAI_DIMENSIONS.get(self.known_as)
        if self.dimensions is None and most is None:
            raise ValueError(
                f"how long are the vectors of {self.known_as!r}? Set dimensions, for example "
                "dimensions: 768"
            )
        if self.dimensions and most and self.dimensions > most:
            raise ValueError(
                f"{self.known_as} has at most {most} dimensions, got {self.dimensions}"
            )
        if (longest := max(self.matryoshka_dimensions, default=0)) >= self.dimension:
            raise ValueError(
                f"matryoshka_dimensions must be less than the {self.dimension} dimensions of "
                f"{self.known_as}'s vectors, got {longest}"
            )
        return self

    @property
    def dimension(self) -> int:
        """Length of the vectors."""
        return self.dimensions or OPENAI_DIMENSIONS[self.known_as]

    @property
    def known_as(self) -> str:
        """The model's own name, where the server calls it by another one."""
        return self.answers_as or self.model

    @property
    def is_openai(self) -> bool:
        """Whether the server is OpenAI's own."""
        return urlsplit(self.base_url).hostname == urlsplit(OPENAI_URL).hostname

"""What can be set of the service."""

from typing import Annotated

from pydantic import ByteSize, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from resources.errors import InvalidInputError
from resources.limits.quota import Quota

_PREFIX = "EMBEDDING_SERVE_"
Count = Annotated[int, Field(gt=0)]


class ServiceSettings(BaseSettings):
    """All variables, each EMBEDDING_SERVE_ and the field's name in capitals."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, env_ignore_empty=True, extra="ignore", frozen=True
    )

    max_body: ByteSize = Field(default=ByteSize(8_000_000), gt=0, description="Bytes of a request.")
    max_texts: Count = Field(default=2_048, description="Texts of a request.")
    max_characters: Count = Field(default=100_000, description="Characters of a text.")
    max_hits: Count = Field(default=1_000, description="Hits of a search.")
    body_seconds: float = Field(
        default=20.0, gt=0, description="For how long a client may take to send a request."
    )
    queue_texts: Count = Field(default=20_000, description="Texts that wait for a model.")
    queue_tokens: Count = Field(
        default=4_000_000, description="Tokens, as estimated, that wait for a model."
    )
    queue_seconds: float = Field(
        default=10.0, gt=0, description="Who would have to wait for longer is refused at once."
    )
    deadline: float = Field(
        default=60.0,
        gt=0,
        description="Seconds after which a request is given up, unless its header "
        "X-Request-Timeout says less.",
    )
    drain_seconds: int = Field(
        default=30, gt=0, description="At the end, for requests that were accepted."
    )
    job_bytes: ByteSize = Field(
        default=ByteSize(1_000_000_000),
        gt=0,
        description="Bytes of the file, or files, of a bulk job.",
    )
    jobs_per_client: Count = Field(
        default=20, description="Bulk jobs of a key, or of all without keys, that have not ended."
    )
    job_days: float = Field(
        default=7.0, gt=0, description="For so long a bulk job and its result are kept."
    )
    job_urls: str = Field(
        default="",
        description="What bulk jobs may read by URL: the beginnings of such URLs, each with a / at "
        "its end, separated by commas; by default nothing.",
    )
    memory: ByteSize | None = Field(
        default=None,
        gt=0,
        description="Memory for vectors that were asked for lately; by default a twentieth of "
        "what there is.",
    )
    requests_per_minute: Count | None = Field(
        default=None, description="Of a key, or of an address without keys; by default any number."
    )
    texts_per_minute: Count | None = Field(default=None, description="The same in texts.")
    tokens_per_minute: Count | None = Field(
        default=None, description="The same in tokens, as estimated: four bytes each."
    )

    def may_read(self, url: str) -> bool:
        """Whether bulk jobs may read what a URL names."""
        allowed = [one.strip() for one in self.job_urls.split(",")]
        is_plain = not any(sign in url for sign in ("..", "::", "@", "\\", "%2e", "%2E"))
        return is_plain and any(
            url.startswith(one) for one in allowed if one.endswith("/") and one != "/"
        )

    @property
    def quota(self) -> Quota:
        """What each client may take unless its key says otherwise."""
        return Quota(self.requests_per_minute, self.texts_per_minute, self.tokens_per_minute)


def read_service_settings() -> ServiceSettings:
    """The settings as the environment has them; `read_environment` adds what `.env` says.

    Raises:
        InvalidInputError: a variable holds what it cannot mean.
    """
    try:
        return ServiceSettings()
    except ValidationError as error:
        wrong = (f"{_PREFIX}{e['loc'][0]}".upper() + f": {e['msg']}" for e in error.errors())
        raise InvalidInputError(f"The environment: {'; '.join(wrong)}.") from None

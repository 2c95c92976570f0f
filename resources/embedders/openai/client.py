"""One exchange with the server. The key is read here, and leaves only in the request."""

import threading
from functools import cached_property
from typing import Any

import dagster as dg

from resources.embedders.openai.models import CAN_BE_SHORTENED, OPENAI_KEY
from resources.embedders.openai.protocol import Reply
from resources.embedders.openai.settings import OpenAISettings
from resources.errors import CredentialsError, MissingPackageError


class OpenAIClient:
    """May be used from several threads; needs key and packages when it is first used."""

    def __init__(self, settings: OpenAISettings) -> None:
        self._settings = settings
        self._making = threading.Lock()

    @property
    def key_variable(self) -> str | None:
        """The environment variable that holds the key, where there is one."""
        # OpenAI's key is not sent to other servers because it happens to be in the environment.
        return self._settings.api_key_env or (OPENAI_KEY if self._settings.is_openai else None)

    @property
    def key(self) -> str | None:
        name = self.key_variable
        return (dg.EnvVar(name).get_value() or "").strip() or None if name else None

    def exchange(self, texts: list[str]) -> Reply | str:
        """The server's answer, or why there is none. The client's errors, which hold the key, end
        here.

        Raises:
            CredentialsError: the key is not set.
            MissingPackageError: `openai` is not installed.
        """
        client = self.connected
        import openai

        settings = self._settings
        options: dict[str, Any] = {"encoding_format": "base64"}
        if settings.dimensions and settings.model.startswith(CAN_BE_SHORTENED):
            options["dimensions"] = settings.dimensions
        try:
            raw = client.embeddings.with_raw_response.create(
                input=texts, model=settings.model, **options
            )
            response = raw.http_response
        except openai.APIStatusError as error:
            response = error.response
        except openai.APITimeoutError:
            return f"No answer within {settings.timeout:g} s"
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            return f"No complete answer ({type(cause).__name__}: {cause})".replace(
                self.key or "\0", "***"
            )
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Reply(response.status_code, headers, response.content, self.key)

    @property
    def connected(self) -> Any:
        """The package's client; see `exchange` for the errors."""
        with self._making:
            return self._made

    @cached_property
    def _made(self) -> Any:
        try:
            from openai import OpenAI
        except ImportError:
            raise MissingPackageError("provider: openai", "openai") from None
        settings, key, variable = self._settings, self.key, self.key_variable
        if key is None and variable:
            raise CredentialsError(
                f"The environment variable {variable} is not set; it must hold the key "
                f"for {settings.base_url}."
            )
        if key and not (key.isascii() and key.isprintable()):
            raise CredentialsError(
                f"The environment variable {variable} holds characters that no key has."
            )
        return OpenAI(
            api_key=key or "none",
            base_url=settings.base_url,
            timeout=settings.timeout,
            max_retries=0,  # it would also retry what is hopeless, and outside of our limits
        )

"""One exchange with the server. The key is read here, and leaves only in the request."""

import ipaddress
import threading
import urllib.request
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import dagster as dg

from resources.embedders.openai.failures import Failure, Reply
from resources.embedders.openai.learned import Form
from resources.embedders.openai.models import OPENAI_KEY
from resources.embedders.openai.settings import OpenAISettings
from resources.errors import CredentialsError, MissingPackageError

_RAW = {"X-Stainless-Raw-Response": "true"}
"""What the client's `with_raw_response` sends; its answer holds the HTTP response."""


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

    @cached_property
    def proxy(self) -> str | None:
        """Through which proxy the requests go, without user and password; None: directly.

        Whoever names a proxy for all requests does not mean the servers of this machine.
        """
        parts = urlsplit(self._settings.base_url)
        host = parts.hostname or ""
        if _is_this_machine(host) or urllib.request.proxy_bypass(host):
            return None
        proxies = urllib.request.getproxies()
        named = proxies.get(parts.scheme) or proxies.get("all") or ""
        return named.split("://")[-1].rpartition("@")[2].rstrip("/") or None

    def exchange(self, texts: list[str], form: Form, timeout: float) -> Reply | Failure:
        """The server's answer, or why there is none. The client's errors, which hold the key, end
        here.

        Args:
            texts: as they are sent.
            form: which parameters the server knows.
            timeout: seconds.

        Raises:
            CredentialsError: the key is not set.
            MissingPackageError: `openai` is not installed.
        """
        client = self.connected
        import openai

        settings = self._settings
        body: dict[str, Any] = {"input": texts, "model": settings.model}
        if form.encoding:
            body["encoding_format"] = form.encoding
        if settings.dimensions and form.dimensions:
            body["dimensions"] = settings.dimensions
        try:
            # The client's own method for embeddings always sends an encoding.
            response = client.post(
                "/embeddings",
                cast_to=object,
                body=body,
                options={"headers": _RAW, "timeout": timeout},
            ).http_response
        except openai.APIStatusError as error:
            response = error.response
        except openai.APITimeoutError:
            many = "one text" if len(texts) == 1 else f"{len(texts)} texts"
            return Failure("time-out", f"No answer within {timeout:.3g} s to {many}")
        except openai.APIConnectionError as error:
            return self._no_connection(error.__cause__ or error)
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Reply(response.status_code, headers, response.content, self.key)

    def _no_connection(self, cause: BaseException) -> Failure:
        said = f"No complete answer ({type(cause).__name__}: {cause})"
        said = said.replace(self.key or "\0", "***")
        never = ("CERTIFICATE_VERIFY_FAILED", "WRONG_VERSION_NUMBER", "UnsupportedProtocol")
        return Failure("address" if any(word in said for word in never) else "connection", said)

    @property
    def connected(self) -> Any:
        """The package's client; see `exchange` for the errors."""
        with self._making:
            return self._made

    @cached_property
    def _made(self) -> Any:
        try:
            from openai import DefaultHttpxClient, OpenAI
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
        host = urlsplit(settings.base_url).hostname or ""
        client = OpenAI(
            api_key=key or "none",
            base_url=settings.base_url,
            timeout=settings.timeout,
            max_retries=0,  # it would also retry what is hopeless, and outside of our limits
            http_client=DefaultHttpxClient(trust_env=False) if _is_this_machine(host) else None,
        )
        if not settings.is_openai:
            # From OPENAI_ORG_ID, OPENAI_PROJECT_ID and OPENAI_CUSTOM_HEADERS, which may hold keys.
            client.organization = client.project = None
            client._custom_headers = {}
        return client


def _is_this_machine(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False

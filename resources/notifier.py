"""Who is told when something went wrong."""

import json
import logging
import os
from abc import ABC, abstractmethod
from urllib.parse import urlsplit

import dagster as dg
from pydantic import Field

_log = logging.getLogger(__name__)


class Notifier(dg.ConfigurableResource, ABC):
    """Tells people what an asset, a check or a sensor wants them to know."""

    @abstractmethod
    def notify(self, title: str, text: str) -> str:
        """Tells somebody; never raises, for the trouble it reports on is trouble enough.

        Returns:
            What became of the message, as a sentence for a log; holds no secret.
        """


class LogNotifier(Notifier):
    """Writes a warning into the log of the process."""

    def notify(self, title: str, text: str) -> str:
        _log.warning("%s: %s", title, text)
        return "It was written to the log."


class WebhookNotifier(Notifier):
    """Posts JSON `{"text": ...}`, as Slack, Mattermost and others take it.

    The URL is a secret: it is read from the environment when it is needed, and never shown.
    """

    url_variable: str = Field(
        default="EMBEDDING_WEBHOOK_URL", description="Environment variable with the URL."
    )
    timeout: float = Field(default=10.0, description="Seconds to wait for the answer.")

    def notify(self, title: str, text: str) -> str:
        import http.client
        import urllib.error
        import urllib.request

        fallback = LogNotifier().notify(title, text)
        url = os.environ.get(self.url_variable, "")
        body = json.dumps({"text": f"{title}\n{text}"}).encode()
        headers = {"Content-Type": "application/json"}
        try:
            if urlsplit(url).scheme not in ("http", "https"):
                return f"{fallback} {self.url_variable} holds no http(s) URL."
            request = urllib.request.Request(url, data=body, headers=headers, method="POST")
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                return f"The webhook answered {answer.status}."
        except urllib.error.HTTPError as error:
            return f"{fallback} The webhook answered {error.code}."
        except (OSError, ValueError, http.client.HTTPException) as error:
            # Not the message: it may quote the URL.
            return f"{fallback} The webhook was not reached ({type(error).__name__})."

"""A real HTTP server with OpenAI's embeddings interface, which does as a script says."""

import base64
import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from resources.embedders.openai.embedder import OpenAIEmbedder
from tests.support.fakes import fake_vector

MODEL = "text-embedding-3-small"
KEY = "sk-planted-3f9c1e77a0b84d5e"


@dataclass(frozen=True)
class Request:
    """One request as it reached the server."""

    time: float
    texts: list[str]
    body: dict[str, Any]
    headers: dict[str, str]


@dataclass
class Answer:
    """What the server does with one request.

    Attributes:
        body: bytes, or what becomes JSON.
        cut: how many bytes of the body are really sent.
        after: seconds until it answers.
        reset: whether it resets the connection instead.
    """

    status: int = 200
    body: Any = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    after: float = 0.0
    reset: bool = False


Step = Callable[[Request], Answer]


class OpenAIServer:
    """Does one step of `script` a request, and `always` when it has ended."""

    def __init__(self, *script: Step, always: Step | None = None, dimension: int = 16) -> None:
        self.dimension = dimension
        self.script = list(script)
        self.always = always or self.embeddings
        self.requests: list[Request] = []
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                headers = {name.lower(): value for name, value in self.headers.items()}
                request = Request(time.monotonic(), body["input"], body, headers)
                with server._lock:
                    server.requests.append(request)
                    step = server.script.pop(0) if server.script else server.always
                self._answer(step(request))

            def _answer(self, answer: Answer) -> None:
                if answer.after:
                    server._stopped.wait(answer.after)
                if answer.reset:
                    linger = struct.pack("ii", 1, 0)  # close() then resets
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    self.close_connection = True
                    return
                body = answer.body
                body = body if isinstance(body, bytes) else json.dumps(body).encode()
                try:
                    self.send_response(answer.status)
                    for name, value in answer.headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body[: answer.cut])
                except OSError:  # the client has gone
                    self.close_connection = True
                if answer.cut is not None:
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                del format, args

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}/v1"

    def __enter__(self) -> "OpenAIServer":
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopped.set()
        self._http.shutdown()
        self._http.server_close()

    def embeddings(self, request: Request) -> Answer:
        """What a server without faults answers."""
        return Answer(body=self.content(request))

    def content(self, request: Request, **changes: Any) -> dict[str, Any]:
        as_base64 = request.body.get("encoding_format") == "base64"
        vectors = [fake_vector(text, self.dimension) for text in request.texts]
        return {
            "object": "list",
            "model": request.body["model"],
            "data": [
                {
                    "object": "embedding",
                    "index": index,
                    "embedding": as_text(vector) if as_base64 else vector.tolist(),
                }
                for index, vector in enumerate(vectors)
            ],
            "usage": {"prompt_tokens": tokens(request), "total_tokens": tokens(request)},
            **changes,
        }


def tokens(request: Request) -> int:
    """What this server counts: a token a word."""
    return sum(len(text.split()) for text in request.texts)


def as_text(vector: np.ndarray) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def error(
    status: int, message: str = "scripted", headers: dict[str, str] | None = None, **fields: Any
) -> Step:
    """An error as OpenAI writes it."""
    content = {"error": {"message": message, **fields}}
    return lambda _: Answer(status, content, headers or {})


def embedder(server: OpenAIServer | str, folder: Path, **fields: Any) -> OpenAIEmbedder:
    """Asks the server with short waits; the key is in the environment as PLANTED_KEY."""
    url = server if isinstance(server, str) else server.url
    return OpenAIEmbedder(
        **{
            "model": MODEL,
            "dimensions": 16,
            "base_url": url,
            "api_key_env": "PLANTED_KEY",
            "rate_limits": str(folder / "rate_limits"),
            "retry_delay": 0.01,
            "timeout": 10.0,
            **fields,
        }
    )


def assert_right(vectors: np.ndarray, texts: list[str]) -> None:
    expected = np.stack([fake_vector(text, 16) for text in texts])
    np.testing.assert_allclose(vectors, expected, atol=1e-6)

"""A real HTTP server that gives the search page what a script says, under the service's policy."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import embedding_assets.service

PAGE = Path(embedding_assets.service.__file__).with_name("page.html")
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True)
class Request:
    """One request as it reached the server; `path` has no query, whose values are `asked`."""

    path: str
    asked: dict[str, str]
    body: Any
    key: str | None


@dataclass
class Answer:
    """What the server says.

    Attributes:
        wait: the answer is held back until this is set.
    """

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    wait: threading.Event | None = None


class PageServer:
    """Answers `/collections`, `/search` and a document with the functions that stand here."""

    def __init__(
        self,
        collections: Callable[[Request], Answer],
        search: Callable[[Request], Answer],
        document: Callable[[Request], Answer],
    ) -> None:
        self.collections, self.search, self.document = collections, search, document
        self.requests: list[Request] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer(None)

            def do_POST(self) -> None:
                self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def _answer(self, body: Any) -> None:
                parts = urlsplit(self.path)
                if parts.path == "/":
                    headers = {"Content-Security-Policy": POLICY, "Content-Type": "text/html"}
                    self._send(200, headers, PAGE.read_bytes())
                    return
                asked = {name: values[-1] for name, values in parse_qs(parts.query).items()}
                key = self.headers["X-API-Key"]
                request = Request(parts.path, asked, body, key)
                server.requests.append(request)
                if parts.path == "/collections":
                    answer = server.collections(request)
                elif parts.path == "/search":
                    answer = server.search(request)
                else:
                    answer = server.document(request)
                if answer.wait is not None:
                    answer.wait.wait(30)
                headers = {"Content-Type": "application/json", **answer.headers}
                self._send(answer.status, headers, json.dumps(answer.body).encode())

            def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
                with suppress(OSError):  # the browser may have gone
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                del format, args

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/"

    def searches(self) -> list[Request]:
        return [request for request in self.requests if request.path == "/search"]

    @contextmanager
    def running(self) -> Iterator[None]:
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield
        finally:
            self._http.shutdown()
            self._http.server_close()

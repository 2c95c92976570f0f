"""The reverse proxy of docs/nginx.conf, with real nginx before two real web servers of Dagster."""

import base64
import grp
import http.client
import json
import os
import pwd
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.checkout import PROJECT
from tests.support.instance import dagster_home

CONFIGURATION = PROJECT / "docs" / "nginx.conf"
HOST = "dagster.example.com"
SBIN = f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin{os.pathsep}/usr/local/sbin"
NGINX, OPENSSL = shutil.which("nginx", path=SBIN), shutil.which("openssl")
pytestmark = pytest.mark.skipif(
    not (NGINX and OPENSSL),
    reason="no nginx or no openssl on PATH; on Debian and Ubuntu: apt-get install nginx openssl",
)

STARTS_WITHIN_SECONDS = 120


@dataclass(frozen=True)
class Proxy:
    """A client of the proxy, such as a browser, or something worse."""

    port: int
    certificate: Path

    @property
    def origin(self) -> str:
        return f"https://{HOST}:{self.port}"

    def connect(self, server_name: str = HOST) -> ssl.SSLSocket:
        context = ssl.create_default_context(cafile=str(self.certificate))
        context.check_hostname = False
        raw = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        return context.wrap_socket(raw, server_hostname=server_name)

    def request(
        self,
        method: str,
        path: str,
        *,
        user: str | None = None,
        password: str = "secret",
        origin: str | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        host: str | None = None,
    ) -> tuple[int, bytes]:
        sent = {"Host": host or f"{HOST}:{self.port}", **(headers or {})}
        if user is not None:
            login = base64.b64encode(f"{user}:{password}".encode()).decode()
            sent["Authorization"] = f"Basic {login}"
        if origin is not None:
            sent["Origin"] = origin
        if body is not None:
            sent["Content-Type"] = "application/json"
        connection = http.client.HTTPConnection(HOST, self.port)
        connection.sock = self.connect()
        try:
            connection.request(method, path, json.dumps(body) if body else None, sent)
            answer = connection.getresponse()
            # After 101 the connection belongs to the WebSocket, and has no end.
            return answer.status, b"" if answer.status == 101 else answer.read()
        finally:
            connection.close()

    def graphql(self, user: str, query: str) -> dict[str, Any]:
        _, answer = self.request(
            "POST", "/graphql", user=user, origin=self.origin, body={"query": query}
        )
        return json.loads(answer)


def limits(proxy: Proxy) -> dict[str, Any]:
    query = "{ instance { concurrencyLimits { concurrencyKey slotCount } } }"
    found = proxy.graphql("viewer", query)["data"]["instance"]["concurrencyLimits"]
    return {limit["concurrencyKey"]: limit["slotCount"] for limit in found}


def set_limit(name: str) -> str:
    """A mutation whose effect `limits` shows."""
    return f'mutation {{ setConcurrencyLimit(concurrencyKey: "{name}", limit: 3) }}'


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + STARTS_WITHIN_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    pytest.fail(f"{process.args} did not start:\n{log.read_text()[-3000:]}")


def _configure_nginx(folder: Path, port: int, operators: int, viewers: int) -> Path:
    """Writes the documented configuration for other ports; returns the certificate."""
    assert OPENSSL
    certificate, key = folder / "dagster.crt", folder / "dagster.key"
    subprocess.run(
        [OPENSSL, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
         "-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}",
         "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )  # fmt: skip
    hashed = subprocess.run(
        [OPENSSL, "passwd", "-apr1", "secret"], check=True, capture_output=True, text=True
    ).stdout.strip()
    (folder / "dagster.htpasswd").write_text(f"operator:{hashed}\nviewer:{hashed}\n")
    configuration = CONFIGURATION.read_text()
    for documented, here in {
        "listen 443": f"listen 127.0.0.1:{port}",
        f"https://{HOST}": f"https://{HOST}:{port}",
        "127.0.0.1:3000": f"127.0.0.1:{operators}",
        "127.0.0.1:3001": f"127.0.0.1:{viewers}",
        "/etc/nginx/": f"{folder}/",
    }.items():
        assert documented in configuration
        configuration = configuration.replace(documented, here)
    (folder / "dagster.conf").write_text(configuration)
    account = pwd.getpwuid(os.getuid())
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        # As root, nginx would read the passwords as somebody else.
        f"user {account.pw_name} {grp.getgrgid(account.pw_gid).gr_name};\n"
        f"daemon off;\npid {folder}/nginx.pid;\nerror_log stderr;\n"
        "events { worker_connections 64; }\n"
        f"http {{ access_log off;\n{temporary}include {folder}/dagster.conf; }}\n"
    )
    return certificate


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    assert NGINX
    folder = tmp_path_factory.mktemp("proxy")
    port, operators, viewers = _free_ports(3)
    certificate = _configure_nginx(folder, port, operators, viewers)
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("DAGSTER")},
        "DAGSTER_HOME": str(dagster_home(folder / "home")),
    }
    webserver = [sys.executable, "-m", "dagster_webserver", "--empty-workspace", "-h", "127.0.0.1"]
    commands = {
        operators: [*webserver, "-p", str(operators)],
        viewers: [*webserver, "-p", str(viewers), "--read-only"],
        port: [NGINX, "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")],
    }
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for number, command in commands.items():
            log = folder / f"{number}.log"
            with log.open("wb") as output:
                processes.append(
                    subprocess.Popen(command, env=environment, stdout=output, stderr=output)
                )
            # One after the other: two of them would create the same database at once.
            _wait_for(number, processes[-1], log)
        yield Proxy(port, certificate)
    finally:
        for process in reversed(processes):
            process.send_signal(signal.SIGTERM)
        for process in processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def test_nobody_enters_without_a_login(proxy: Proxy) -> None:
    query = {"query": "{ version }"}
    for path in ("/", "/server_info", "/runs"):
        assert proxy.request("GET", path)[0] == 401
    for user, password in ((None, ""), ("viewer", "guess"), ("nobody", "secret")):
        status, _ = proxy.request(
            "POST", "/graphql", user=user, password=password, origin=proxy.origin, body=query
        )
        assert status == 401


def test_a_viewer_sees_pages_and_data(proxy: Proxy) -> None:
    status, page = proxy.request("GET", "/", user="viewer")
    assert status == 200
    assert b"/_next/static/" in page
    assert proxy.graphql("viewer", "{ version }")["data"]["version"]


def test_a_viewer_changes_nothing_and_an_operator_does(proxy: Proxy) -> None:
    refused = proxy.graphql("viewer", set_limit("by_viewer"))
    assert "UnauthorizedError" in json.dumps(refused)
    assert "by_viewer" not in limits(proxy)
    assert proxy.graphql("operator", set_limit("by_operator"))["data"]["setConcurrencyLimit"]
    assert limits(proxy)["by_operator"] == 3


@pytest.mark.parametrize("origin", [None, "https://evil.example", "null", f"https://{HOST}"])
def test_a_page_of_another_site_changes_nothing(proxy: Proxy, origin: str | None) -> None:
    status, _ = proxy.request(
        "POST", "/graphql", user="operator", origin=origin, body={"query": set_limit("by_page")}
    )
    assert status == 403
    assert "by_page" not in limits(proxy)


def test_no_mutation_by_get_nor_in_the_address(proxy: Proxy) -> None:
    path = "/graphql?query=mutation%7BsetConcurrencyLimit(concurrencyKey:%22by_get%22,limit:3)%7D"
    for method in ("GET", "POST", "HEAD", "PUT"):
        for origin in (proxy.origin, None):
            status, _ = proxy.request(method, path, user="operator", origin=origin)
            assert status in (403, 405)
    websocket = {"Upgrade": "websocket", "Connection": "Upgrade"}
    answer = proxy.request("GET", path, user="operator", origin=proxy.origin, headers=websocket)
    assert answer[0] == 405
    for other in ("/graphql/", "//graphql", "/x/../graphql"):
        address = path.replace("/graphql", other)
        proxy.request("GET", address, user="operator", origin="https://evil.example")
    assert "by_get" not in limits(proxy)


def test_only_graphql_takes_posts(proxy: Proxy) -> None:
    for path in ("/report_asset_materialization/a", "/report_asset_check/a", "/"):
        status, _ = proxy.request(
            "POST", path, user="operator", origin=proxy.origin, body={"asset_key": "a"}
        )
        assert status == 403


@pytest.mark.parametrize("origin", [None, "https://evil.example"])
def test_websockets_of_other_sites_are_refused(proxy: Proxy, origin: str | None) -> None:
    assert _websocket(proxy, origin) == 403


def test_websockets_of_the_own_page_are_served(proxy: Proxy) -> None:
    assert _websocket(proxy, proxy.origin) == 101


def _websocket(proxy: Proxy, origin: str | None) -> int:
    return proxy.request(
        "GET",
        "/graphql",
        user="viewer",
        origin=origin,
        headers={
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
            "Sec-WebSocket-Protocol": "graphql-ws",
        },
    )[0]


def test_another_host_name_gets_no_answer(proxy: Proxy) -> None:
    with pytest.raises(http.client.RemoteDisconnected):
        proxy.request("GET", "/", user="operator", host="evil.example")
    with pytest.raises(ssl.SSLError):
        proxy.connect(server_name="evil.example")


def test_no_other_page_may_frame_it(proxy: Proxy) -> None:
    connection = http.client.HTTPConnection(HOST, proxy.port)
    connection.sock = proxy.connect()
    connection.request("GET", "/", headers={"Host": f"{HOST}:{proxy.port}"})
    assert connection.getresponse().headers["X-Frame-Options"] == "DENY"
    connection.close()

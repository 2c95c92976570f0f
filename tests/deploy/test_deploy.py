"""What `deploy/` ships: it is whole, its alerts fire when they should, its queries find answers.

The services, Prometheus and nginx are real; a container engine is not needed.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from embedding_assets.service.metrics import Metrics
from embedding_assets.service.settings import ServiceSettings
from tests.service.test_embeddings import pipeline
from tests.support.checkout import PROJECT
from tests.support.fakes import POISON, CountingEmbedder
from tests.support.service import RunningService

DEPLOY = PROJECT / "deploy"
RULES = DEPLOY / "prometheus" / "alerts.yml"
SBIN = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin"))
PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")
NGINX = shutil.which("nginx", path=SBIN)
needs_prometheus = pytest.mark.skipif(
    PROMETHEUS is None or PROMTOOL is None,
    reason="no prometheus or no promtool on PATH; on Debian and Ubuntu: apt-get install prometheus",
)


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


CONFIGURATION = load(DEPLOY / "prometheus" / "prometheus.yml")
ALERTS = [rule for group in load(RULES)["groups"] for rule in group["rules"]]
COMPOSE = load(DEPLOY / "compose.yaml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/embedding_assets.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


# --- Prometheus ---------------------------------------------------------------------------------


@needs_prometheus
def test_each_alert_fires_when_it_should_and_else_does_not(tmp_path: Path) -> None:
    shutil.copytree(RULES.parent, tmp_path, dirs_exist_ok=True)
    adapt(tmp_path / "prometheus.yml", tmp_path, ["127.0.0.1:1"])
    for command in (
        ("check", "config", "--syntax-only", str(DEPLOY / "prometheus" / "prometheus.yml")),
        ("check", "config", str(tmp_path / "prometheus.yml")),
        ("check", "rules", str(RULES)),
        ("test", "rules", "alerts_test.yml"),
    ):
        done = subprocess.run(
            [str(PROMTOOL), *command], cwd=RULES.parent, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"promtool {' '.join(command)}\n{done.stdout}{done.stderr}"


def test_each_alert_says_what_to_do_and_has_both_cases() -> None:
    cases = load(RULES.with_name("alerts_test.yml"))["tests"]
    tested = [test for case in cases for test in case["alert_rule_test"]]
    for rule in ALERTS:
        name = rule["alert"]
        assert rule["labels"]["severity"] in ("page", "ticket"), name
        assert len(rule["annotations"]["summary"]) > 20, name
        assert len(rule["annotations"]["description"]) > 60, name
        firing = {bool(test.get("exp_alerts")) for test in tested if test["alertname"] == name}
        # Of a check there is one result, which fires or does not: the cases are in one test.
        assert firing == {True, False} or name.startswith("EmbeddingCheck"), name
    page = (PROJECT / "docs" / "deploy.md").read_text(encoding="utf-8")
    assert {rule["alert"] for rule in ALERTS} == set(
        re.findall(r"^\| `(Embedding\w+)`", page, re.M)
    )


@needs_prometheus
@pytest.mark.slow
def test_prometheus_answers_every_query_from_two_real_services(tmp_path: Path) -> None:
    made = pipeline(tmp_path, embedder=CountingEmbedder())
    made.run()
    with ExitStack() as running:
        services = [
            running.enter_context(
                RunningService(made.opened, folder=tmp_path, requests_per_minute=8)
            )
            for _ in range(2)
        ]
        prometheus = running.enter_context(
            running_prometheus(tmp_path, [one.url.removeprefix("http://") for one in services])
        )
        until(lambda: len(asked(prometheus, "up == 1")) == 2, "both are scraped")
        for service in services:
            ask_all_kinds(service)
        # A rate needs two scrapes that have seen the same series.
        until(
            lambda: all(
                len(asked(prometheus, f"count_over_time({name}[1m]) > 1")) >= 2
                for name in ("embedding_failures_total", "embedding_rate_limited_total")
            ),
            "both were scraped twice",
        )
        unanswered = []
        for panel in PANELS:
            for target in panel["targets"]:
                query = target["expr"].replace("$__rate_interval", "1m")
                found = asked(prometheus, query.replace("$collection", ".*"))
                if not found and "embedding_collection_" not in query:
                    unanswered.append(query)
        assert unanswered == []
        for rule in ALERTS:
            asked(prometheus, rule["expr"])
        rules = get(prometheus, "rules")["groups"]
        healths = {rule["name"]: rule["health"] for group in rules for rule in group["rules"]}
        assert healths == {rule["alert"]: "ok" for rule in ALERTS}


def test_every_metric_of_the_service_in_a_query_is_one() -> None:
    made = set()
    for family in Metrics().registry.collect():
        endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
        made |= {family.name + ending for ending in endings.get(family.type, ("",))}
    queries = [target["expr"] for panel in PANELS for target in panel["targets"]]
    named = set(
        re.findall(r"\bembedding_\w+", " ".join([rule["expr"] for rule in ALERTS] + queries))
    )
    assert {name for name in named if not name.startswith("embedding_collection_")} - made == set()


def ask_all_kinds(service: RunningService) -> None:
    service.post("/embed/batch", texts=["one", "two", "one"])
    service.post("/embed", text="one")
    service.post("/embed", text=POISON)
    service.post("/search", query="three")
    answers = [service.post("/embed", text="one").status_code for _ in range(8)]
    assert answers[-1] == 429


def adapt(configuration: Path, folder: Path, targets: list[str]) -> None:
    """Writes the shipped configuration for other targets, a key that is there, and more haste."""
    (folder / "key").write_text("none is needed")
    (scraped,) = (dict(one) for one in CONFIGURATION["scrape_configs"])
    assert scraped.pop("dns_sd_configs")[0] | {"refresh_interval": ""} == {
        "names": ["api"],
        "type": "A",
        "port": 8080,
        "refresh_interval": "",
    }
    scraped["static_configs"] = [{"targets": targets}]
    scraped["authorization"] = {"credentials_file": str(folder / "key")}
    hasty = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    assert CONFIGURATION["global"].keys() == hasty.keys()
    rules = [str(RULES.parent / name) for name in CONFIGURATION["rule_files"]]
    adapted = {"global": hasty, "rule_files": rules, "scrape_configs": [scraped]}
    assert CONFIGURATION.keys() == adapted.keys()
    configuration.write_text(yaml.safe_dump(adapted))


@contextmanager
def running_prometheus(folder: Path, targets: list[str]) -> Iterator[httpx.Client]:
    configuration, port = folder / "prometheus.yml", free_port()
    adapt(configuration, folder, targets)
    with running_program(
        [
            str(PROMETHEUS),
            f"--config.file={configuration}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        folder,
        f"http://127.0.0.1:{port}",
        "/-/ready",
    ) as client:
        yield client


@contextmanager
def running_program(
    command: list[str], folder: Path, url: str, ready: str
) -> Iterator[httpx.Client]:
    """Starts a server, and yields a client of it once a path is answered with 200."""
    log = folder / "log"
    with (
        log.open("w") as said,
        subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, cwd=folder) as process,
        httpx.Client(base_url=url, timeout=20) as client,
    ):
        try:

            def answers() -> bool:
                assert process.poll() is None, log.read_text()[-3000:]
                try:
                    return client.get(ready).status_code == 200
                except httpx.TransportError:
                    return False

            until(answers, "it answers")
            yield client
        finally:
            process.kill()


def get(prometheus: httpx.Client, what: str, **parameters: str) -> dict[str, Any]:
    answer = prometheus.get(f"/api/v1/{what}", params=parameters).json()
    assert answer["status"] == "success", f"{parameters}: {answer}"
    return answer["data"]


def asked(prometheus: httpx.Client, query: str) -> list[Any]:
    return get(prometheus, "query", query=query)["result"]


def until(condition: Any, what: str) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, f"not within 60 s: {what}"
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# --- The proxy ----------------------------------------------------------------------------------


@pytest.mark.skipif(
    NGINX is None, reason="no nginx on PATH; on Debian and Ubuntu: apt-get install nginx"
)
def test_the_proxy_passes_requests_to_the_replicas_that_there_are(tmp_path: Path) -> None:
    shipped = (DEPLOY / "nginx.conf").read_text()
    made = pipeline(tmp_path, embedder=CountingEmbedder())
    port = free_port()
    with RunningService(made.opened, folder=tmp_path) as service:
        replaced = {
            "server api:8080 resolve;": f"server 127.0.0.1:{free_port()};  # nobody answers\n"
            f"server {service.url.removeprefix('http://')};",
            "listen 8080;": f"listen 127.0.0.1:{port};",
        }
        for name, here in replaced.items():
            assert shipped.count(name) == 1
            shipped = shipped.replace(name, here)
        configuration = tmp_path / "main.conf"
        temporary = "".join(
            f"{kind}_temp_path {tmp_path}/{kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        configuration.write_text(
            f"daemon off;\nmaster_process off;\npid {tmp_path}/nginx.pid;\nerror_log stderr;\n"
            "events { worker_connections 64; }\n"
            f"http {{ access_log off;\n{temporary}{shipped} }}\n"
        )
        command = [str(NGINX), "-e", "stderr", "-p", str(tmp_path), "-c", str(configuration)]
        with running_program(command, tmp_path, f"http://127.0.0.1:{port}", "/health") as client:
            answers = [client.post("/embed", json={"text": str(one)}) for one in range(6)]
            assert [answer.status_code for answer in answers] == [200] * 6
            limit = service.settings.max_body
            is_json = {"Content-Type": "application/json"}
            large = client.post("/embed", content=b" " * (limit + 1), headers=is_json)
            assert large.json()["error"]["code"] == "body_too_large"
            assert service.metric("texts_total", endpoint="/embed", cached="false") == 6


# --- Compose and Grafana ------------------------------------------------------------------------


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_limits_a_health_check_and_a_fixed_version(name: str) -> None:
    service = SERVICES[name]
    limits = service["deploy"]["resources"]["limits"]
    assert limits.keys() == {"cpus", "memory"}
    assert service["healthcheck"]["test"]
    assert service["restart"] == "unless-stopped"
    assert re.search(r":v?\d+\.\d+\.\d+", service["image"])
    if name != "proxy":
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


def test_all_that_is_mounted_exists() -> None:
    for name, service in SERVICES.items():
        for mount in service.get("volumes", ()):
            source = mount.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists(), f"{name}: {mount}"
                assert mount.endswith(":ro"), f"{name}: {mount}"
            else:
                assert source in COMPOSE["volumes"], f"{name}: {mount}"
        assert set(service.get("secrets", ())) <= COMPOSE["secrets"].keys()
        assert set(service.get("depends_on", ())) <= SERVICES.keys()
    mounted = {mount.split(":")[0] for one in SERVICES.values() for mount in one.get("volumes", ())}
    assert set(COMPOSE["volumes"]) <= mounted
    build = SERVICES["api"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).exists()


def test_no_secret_is_in_a_file() -> None:
    variables = set(re.findall(r"^#?(\w+)=", (DEPLOY / "env.example").read_text(), re.M))
    assert not re.search(r"^#?\w+(PASSWORD|KEY)=.", (DEPLOY / "env.example").read_text(), re.M)
    text = (DEPLOY / "compose.yaml").read_text()
    assert set(re.findall(r"(?<!\$)\$\{(\w+)", text)) <= variables
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD|KEY|AUTH", variable):
                assert value is None or re.fullmatch(r"\$\{\w+:\?.*\}", value), (
                    f"{name}: {variable}"
                )
            elif value:
                assert not re.search(r"://[^$]*:[^$]*@", value), f"{name}: {variable}"
    assert all(secret.keys() == {"environment"} for secret in COMPOSE["secrets"].values())
    assert {secret["environment"] for secret in COMPOSE["secrets"].values()} <= variables


def test_what_stands_in_two_files_is_the_same() -> None:
    replicas = SERVICES["api"]["deploy"]["replicas"]
    (missing,) = (rule for rule in ALERTS if rule["alert"] == "EmbeddingReplicaDown")
    assert f"< {replicas}" in missing["expr"]
    limiter = SERVICES["api"]["environment"]["EMBEDDING_RATE_LIMITER"]
    assert f"replicas={replicas}" in limiter
    grace = int(SERVICES["api"]["stop_grace_period"].removesuffix("s"))
    assert grace > ServiceSettings().drain_seconds
    timeout = re.search(r"proxy_read_timeout\s+(\d+)s", (DEPLOY / "nginx.conf").read_text())
    assert timeout
    assert int(timeout[1]) > ServiceSettings().deadline
    (long,) = (rule for rule in ALERTS if rule["alert"] == "EmbeddingQueueLong")
    assert f"> {ServiceSettings().queue_texts // 2}" in long["expr"]


def test_the_image_is_built_of_what_is_there() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().replace("\\\n", "").splitlines()
    copied = [line.split()[1:-1] for line in lines if re.match(r"COPY (?!--from)", line)]
    sources = {source for sources in copied for source in sources}
    assert {source for source in sources if not (PROJECT / source).exists()} == set()
    let_in = re.findall(r"^!(.+)", (DEPLOY / "Dockerfile.dockerignore").read_text(), re.M)
    assert {one for one in sources if not one.startswith(tuple(let_in))} == set()
    bases = [line.split()[1] for line in lines if line.startswith("FROM")]
    assert all(re.fullmatch(r"python:3\.12\.\d+-slim-\w+", base) for base in bases)
    assert "USER app" in lines


def test_grafana_is_given_the_dashboard_and_where_its_numbers_are() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = load(provisioning / "datasources" / "prometheus.yaml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert source["jsonData"]["timeInterval"] == CONFIGURATION["global"]["scrape_interval"]
    (provider,) = load(provisioning / "dashboards" / "embedding_assets.yaml")["providers"]
    mounts = dict(mount.split(":")[:2] for mount in SERVICES["grafana"]["volumes"])
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]
    variables = DASHBOARD["templating"]["list"]
    assert [one["name"] for one in variables] == ["collection"]
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for one in [*PANELS, *variables]:
        assert one["datasource"]["uid"] == source["uid"]
    for panel in PANELS:
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["description"].endswith(".")


def test_no_panel_covers_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {
            (column, line)
            for column in range(at["x"], at["x"] + at["w"])
            for line in range(at["y"], at["y"] + at["h"])
        }
        assert not taken & cells, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells

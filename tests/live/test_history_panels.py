"""The panels of the past, asked of a real archive of real guests: through Infinity's way, and through Prometheus."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlencode

import pytest
import yaml

from exporter.demonstration.guest_console import GuestConsole
from exporter.demonstration.private_hypervisor import PrivateHypervisor
from exporter.demonstration.private_namespaces import BRIDGE_ADDRESS, BRIDGE_MAC
from exporter.token_changes import create_token
from exporter.tokens import Role
from tests.grafana.expressions import FILES, history_targets, plain, targets
from tests.grafana.infinity import asked, wide
from tests.live.servers import Prometheus, Server, exporter_server, prometheus_server

JOB, INSTANCE = "libvirt", "alpha:9177"
TARGETS = history_targets()
YEAR = [target for file in FILES for target in targets(file) if target.panel.get("timeFrom") == "1y"]


@dataclass(frozen=True)
class Archived:
    """An exporter with an archive, and a token that may read it."""

    exporter: Server
    token: str

    @property
    def variables(self) -> dict[str, str]:
        """What Grafana puts in place of its variables, for the last quarter of an hour."""
        now_ms = int(time.time() * 1000)
        return {"domain": "load", "__from": str(now_ms - 900_000), "__to": str(now_ms)}


@pytest.fixture(scope="module")
def archived(hypervisor: PrivateHypervisor, load_guest: GuestConsole,
             tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archived]:
    """The guest `load` at work, until each field that the panels ask for has been archived."""
    folder = tmp_path_factory.mktemp("past")
    state = folder / "state"
    state.mkdir(mode=0o700)
    token = create_token(state / "tokens.yml", "grafana", Role.READER, ("*",), datetime.now(UTC), None)[1]
    flags = [f"--state.directory={state}", "--archive.uri=embedded", "--sampling.interval=1s", "--host.name=alpha",
             "--archive.window=10s"]
    with exporter_server(folder, hypervisor.read_only_uri, flags) as exporter:
        exporter.start()
        exporter.wait_ready(60)
        found = Archived(exporter, token)
        wait_for_values(found, load_guest)
        yield found
        load_guest.order("idle")


def wait_for_values(archived: Archived, guest: GuestConsole) -> None:
    deadline = time.monotonic() + 150
    while missing := [str(target) for target in TARGETS if not has_values(archived, target.target)]:
        assert time.monotonic() < deadline, f"never had {missing}\n{archived.exporter.log.read_text()[-2000:]}"
        for order in ("cpu 30", "write 4194304", "read 2097152 4096", "flush",
                      f"ping {BRIDGE_ADDRESS} {BRIDGE_MAC} 10 500"):
            assert guest.order(order).status == 0, order


def has_values(archived: Archived, target: dict[str, object]) -> bool:
    try:
        rows = asked(target, archived.exporter.url(""), archived.token, archived.variables)
    except OSError:  # the embedded server is starting, or knows no guest yet
        return False
    return any(value is not None for points in wide(target, rows).values() for _, value in points)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_each_query_gives_a_line_for_the_mean_and_one_for_the_highest(archived: Archived, target) -> None:  # type: ignore[no-untyped-def]
    rows = asked(target.target, archived.exporter.url(""), archived.token, archived.variables)
    fields = wide(target.target, rows)
    devices = {labels for _, labels in fields}
    assert len(fields) == 2 * len(devices)
    for labels in devices:
        (mean,) = (points for (name, of), points in fields.items() if of == labels and "highest" not in name)
        (highest,) = (points for (name, of), points in fields.items() if of == labels and "highest" in name)
        assert [t for t, _ in mean] == sorted(t for t, _ in mean)
        assert all(high >= low - 1e-9 for (_, low), (_, high) in zip(mean, highest, strict=True)
                   if low is not None and high is not None)
    now_s = time.time()
    assert all(now_s - 1000 < t <= now_s + 1 for points in fields.values() for t, _ in points)


def test_prometheus_answers_the_year_from_the_archive(archived: Archived, tmp_path: Path) -> None:
    """A Prometheus that has scraped nothing: what it shows, it has read from the archive."""
    server = reading_prometheus(archived, tmp_path)
    with server:
        server.start()
        server.wait_ready()
        assert len(YEAR) >= 2
        for target in YEAR:
            expr = plain(target.expr, job=JOB, instance=INSTANCE)
            deadline = time.monotonic() + 60
            while not values(server, expr):
                assert time.monotonic() < deadline, f"{target}: {expr}"
                time.sleep(0.5)


def values(prometheus: Prometheus, expr: str) -> list[object]:
    now_s = time.time()
    answer = prometheus.get("/api/v1/query_range?" + urlencode(
        {"query": expr, "start": now_s - 120, "end": now_s, "step": 5}))
    found: list[object] = json.loads(answer)["data"]["result"]
    return found


def reading_prometheus(archived: Archived, folder: Path) -> Prometheus:
    """With the remote_read of the shipped example, whose comment signs are taken off."""
    shipped = (Path(__file__).parents[2] / "grafana" / "examples" / "prometheus.yml").read_text()
    lines = shipped[shipped.index("# remote_read:"):].splitlines()
    section = yaml.safe_load("\n".join(line.removeprefix("# ") for line in lines))
    (reading,) = section["remote_read"]
    assert "localhost:9177" in reading["url"]
    reading["url"] = reading["url"].replace("localhost:9177", archived.exporter.address)
    token = folder / "archive.token"
    token.write_text(archived.token)
    reading["authorization"]["credentials_file"] = str(token)
    reading["read_recent"] = True  # it has no samples of its own, so that it cannot know since when it has them
    server = prometheus_server(folder, [])
    (file,) = folder.glob("prometheus-*.yml")
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), "scrape_configs": [], **section}))
    return server

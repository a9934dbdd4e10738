"""A guest moves while an exporter a host watches, and the control service is asked for it over HTTP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.control_service import PROGRAM, ControlService
from tests.live.conftest import StartExporter
from tests.live.host_pair import HostPair, define_on, host_pair
from tests.live.operating import Operator, eventually
from tests.live.scraping import Page, Scraper
from tests.live.sector_guests import SectorGuest, dirtying
from tests.live.watching import Watcher

SLOW = {"to": "there", "shared_disk": ["hda"], "bandwidth_mib_per_second": 1, "max_downtime_s": 0.01}
# Both hosts are one kernel here: each exporter would see both QEMUs with the guest's UUID, and may take the source's
# for the destination's. On two machines there is one; so libvirt's own figures are watched.
EXPORTER = ("--sampling.interval=1s", "--sampling.max-age=0s", "--sampling.kernel=off")


@pytest.fixture(scope="module")
def pair() -> Iterator[HostPair]:
    with host_pair() as pair:
        yield pair


@pytest.fixture
def roamer(pair: HostPair) -> Iterator[SectorGuest]:
    """A running guest on the source that writes to its memory without a pause."""
    guest = define_on(pair.here, "roamer", dirtying())
    pair.here.virsh("start", guest.name)
    eventually(guest.said, "the guest's first word")
    yield guest
    pair.remove(guest.uuid)


@pytest.fixture
def service(pair: HostPair, tmp_path: Path) -> Iterator[ControlService]:
    service = ControlService(tmp_path, pair.here.uri)
    to_there = pair.to_there
    service.environment["VIRTGAUGE_CONTROL_MIGRATION_DESTINATION"] = f"there={to_there.uri} {to_there.stream_uri}"
    try:
        yield service.start()
    finally:
        service.stop(signal.SIGKILL)


def test_its_series_end_here_and_begin_there(
    pair: HostPair, roamer: SectorGuest, service: ControlService, start_exporter: StartExporter
) -> None:
    """Watched on both sides over the whole way; asked for by the API, made faster from the command line."""
    scrapers = [Scraper(start_exporter(host.read_only_uri, EXPORTER), 10.0) for host in (pair.here, pair.there)]
    watchers = [Watcher(scraper, {roamer.name}) for scraper in scrapers]
    here, there = scrapers
    eventually(lambda: _cpu(here.scrape()) is not None, "the guest's series on the source")
    assert not there.scrape().of_domain(roamer.name)
    with watchers[0].watching(), watchers[1].watching():
        path = f"/api/v1/domains/{roamer.name}/migrate"
        assert service.problem("POST", path, {"parameters": SLOW}) == (428, "unconfirmed")
        assert service.problem("POST", path, {"parameters": {**SLOW, "to": pair.there.uri[:60]}})[0] == 404
        status, job = service.ask("POST", path, {"parameters": SLOW, "confirm": roamer.name})
        assert (status, job["state"]) == (202, "running")
        location = service.headers["location"]
        page = eventually(lambda: _with_job(here.scrape(), roamer.name), "the job on the source's page")
        told = {name for name, labels in page.values if name.startswith("libvirt_domain_job_")}
        assert {"libvirt_domain_job_memory_remaining_bytes", "libvirt_domain_job_memory_total_bytes",
                "libvirt_domain_job_elapsed_seconds", "libvirt_domain_job_data_remaining_bytes"} <= told  # fmt: skip
        eventually(lambda: "pass" in service.ask("GET", location)[1].get("phase", ""), "progress of the job")
        words = ["domain", "migrate-tune", roamer.name, "--bandwidth-mib-per-second", "2000", "--max-downtime", "2s"]
        tuned = service.run(*words, "--libvirt.uri", service.uri)
        assert (tuned.returncode, tuned.stderr) == (0, "")
        done = eventually(lambda: _done(service, location), "the end of the migration", 120)
        assert (done["state"], done["outcome"]["details"]["runs_on"]) == ("succeeded", "there")
        eventually(lambda: not here.scrape().of_domain(roamer.name), "the end of its series here")
        usage = eventually(lambda: there.scrape().value("libvirt_domain_cpu_usage_cores", domain=roamer.name),
                           "its rates there")  # fmt: skip
        assert 0 < usage < (os.cpu_count() or 1) + 1
    assert pair.running_on(roamer.uuid) == ["there"]
    # On no page it had a rate beyond what the host has, and its counters began anew as another series' would.
    assert min(watcher.pages for watcher in watchers) > 5


def _cpu(page: Page) -> float | None:
    return page.value("libvirt_domain_info_cpu_time_seconds_total", domain="roamer")


def _with_job(page: Page, domain: str) -> Page | None:
    found = page.value("libvirt_domain_job_info", domain=domain, operation="migration_out", type="unbounded")
    remaining = page.value("libvirt_domain_job_memory_remaining_bytes", domain=domain)
    return page if found and remaining else None


def _done(service: ControlService, location: str) -> dict[str, object] | None:
    job: dict[str, object] = service.ask("GET", location)[1]
    return None if job["state"] == "running" else job


def test_a_cancelled_job_leaves_it_here(pair: HostPair, roamer: SectorGuest, service: ControlService) -> None:
    body = {"parameters": SLOW, "confirm": roamer.name}
    status, job = service.ask("POST", f"/api/v1/domains/{roamer.name}/migrate", body)
    assert status == 202
    eventually(lambda: service.ask("GET", f"/api/v1/domains/{roamer.name}/migrate-status")[1]["details"]["migrating"],
               "the migration")  # fmt: skip
    assert service.ask("POST", f"/api/v1/jobs/{job['id']}/cancel")[0] == 202
    done = eventually(lambda: _done(service, f"/api/v1/jobs/{job['id']}"), "the end of the job", 90)
    assert (done["state"], done["status"]) == ("failed", 504)
    assert "cancelled by the caller; it is running" in str(done["outcome"])
    assert pair.running_on(roamer.uuid) == ["here"]


def test_the_command_line_knows_the_settings_destinations_only(
    pair: HostPair, roamer: SectorGuest, service: ControlService
) -> None:
    words = ["--shared-disk", "hda", "--yes", "--libvirt.uri", service.uri, "--output", "json"]
    refused = service.run("domain", "migrate", roamer.name, "--to", pair.there.uri[:63], *words)
    assert (refused.returncode, json.loads(refused.stdout)["error"]["kind"]) == (4, "not-found")
    moved = service.run("domain", "migrate", roamer.name, "--to", "there", *words)
    assert (moved.returncode, json.loads(moved.stdout)["after"]["host"]) == (0, "there")
    assert Operator(pair.there.uri, service.folder / "there").state(roamer.name) == "running"


def test_ctrl_c_aborts_it_and_says_where_it_is(pair: HostPair, roamer: SectorGuest, service: ControlService) -> None:
    slow = ["--bandwidth-mib-per-second", "1", "--max-downtime", "10ms", "--shared-disk", "hda", "--yes"]
    command = [*PROGRAM, "domain", "migrate", roamer.name, "--to", "there", *slow, "--libvirt.uri", service.uri,
               "--state.directory", str(service.state)]  # fmt: skip
    with subprocess.Popen(command, env=service.environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as asked:
        status = f"/api/v1/domains/{roamer.name}/migrate-status"
        eventually(lambda: service.ask("GET", status)[1]["details"]["migrating"], "the migration")
        asked.send_signal(signal.SIGINT)
        told = asked.communicate(timeout=90)[1].decode()
    assert asked.returncode == 5, told
    assert "cancelled by the caller; it is running" in told
    assert "Traceback" not in told
    assert pair.running_on(roamer.uuid) == ["here"]

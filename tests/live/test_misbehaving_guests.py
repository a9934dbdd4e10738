"""The whole story, with nothing played: a guest misbehaves, the exporter sees it, the shipped alert fires in
Prometheus, Alertmanager sends the webhook, the shipped rule acts on the guest in libvirt, the alert resolves, and the
audit trail, also in the archive's database, holds all of it. One test tells it, under each mode; further misfortunes of
the same guest follow.

Times are shortened (tests/live/alerting.py); of the rules their mode, host and waits are this test's.
"""

from __future__ import annotations

import logging
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest
from pymongo import MongoClient

from exporter.archive.embedded import EmbeddedServer
from exporter.archive.trail_reading import archived_records
from exporter.control.errors import ControlError, RefusedError
from exporter.demonstration.guest_console import GuestConsole
from exporter.demonstration.guest_definition import Accelerator
from exporter.demonstration.guest_image import GuestImage
from exporter.demonstration.private_hypervisor import PrivateHypervisor
from tests.control_service import ControlService
from tests.live.alerting import Alerting, RecordedWebhooks, hastened
from tests.live.misbehaving_guest import CURRENT_MIB, MisbehavingGuest
from tests.live.operating import Operator, eventually
from tests.live.rule_story import Record, Rules, Story

# What a guest of 128 MiB under emulation can do.
KNOBS = {"guest_memory_ratio": "0.6", "noisy_disk_bytes_per_second": "500000", "disk_latency_seconds": "0.000001"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """All that a scene plays with."""

    guest: MisbehavingGuest
    alerting: Alerting
    webhooks: RecordedWebhooks
    story: Story
    operator: Operator
    database: EmbeddedServer


@pytest.fixture(scope="module")
def guest(
    hypervisor: PrivateHypervisor, image: GuestImage, guest_accelerator: Accelerator
) -> Iterator[MisbehavingGuest]:
    made = MisbehavingGuest(hypervisor, "victim", image, guest_accelerator)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def operator(hypervisor: PrivateHypervisor, tmp_path: Path) -> Iterator[Operator]:
    made = Operator(hypervisor.uri, tmp_path / "control")
    yield made
    made.close()


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    server = EmbeddedServer(tmp_path_factory.mktemp("database"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def story(
    tmp_path_factory: pytest.TempPathFactory, hypervisor: PrivateHypervisor, database: EmbeddedServer
) -> Iterator[Story]:
    service = ControlService(tmp_path_factory.mktemp("control"), hypervisor.uri)
    rules = Rules(service.folder / "rules.yml")
    service.environment["VIRTGAUGE_CONTROL_RULES_FILE"] = str(rules.file)
    service.environment["VIRTGAUGE_ARCHIVE_URI"] = database.uri(120)
    service.start()
    yield Story(service, rules)
    service.stop()


@pytest.fixture(scope="module")
def webhooks() -> Iterator[RecordedWebhooks]:
    with RecordedWebhooks() as recorded:
        yield recorded


@pytest.fixture(scope="module")
def alerting(
    tmp_path_factory: pytest.TempPathFactory, hypervisor: PrivateHypervisor, guest: MisbehavingGuest,
    webhooks: RecordedWebhooks, story: Story,
) -> Iterator[Alerting]:
    urls = {webhooks.url: "",
            f"http://127.0.0.1:{story.service.port}/api/v1/alerts": story.service.tokens["alerts"]}  # fmt: skip
    with Alerting(tmp_path_factory.mktemp("alerting"), hypervisor.read_only_uri, urls, KNOBS,
                  control=(f"127.0.0.1:{story.service.port}", story.service.tokens["reader"])) as made:
        made.prometheus.wait_for('libvirt_domain_state{domain="victim",state="running"} == 1')
        yield made


@pytest.fixture
def stage(
    guest: MisbehavingGuest, alerting: Alerting, webhooks: RecordedWebhooks, story: Story, operator: Operator,
    database: EmbeddedServer,
) -> Stage:
    return Stage(guest, alerting, webhooks, story, operator, database)


def test_two_minutes_are_a_second() -> None:
    text = '        expr: |\n          increase(x{a="[5m]"}[10m]) > 0 unless y offset 10m\n        for: 15m\n'
    assert hastened(text) == (
        '        expr: |\n          increase(x{a="[2s]"}[5s]) > 0 unless y offset 5s\n        for: 7s\n')


@pytest.mark.timeout(900)
def test_a_guest_misbehaves_an_alert_fires_a_rule_acts_and_the_trail_holds_the_whole_story(
    stage: Stage, load_guest: GuestConsole
) -> None:
    _full_storage_under_dry_run_changes_nothing(stage)
    _full_storage_under_approve_goes_on_once_there_is_room(stage)
    _a_noisy_disk_under_enforce_is_limited_until_the_alert_resolves(stage, load_guest)
    _the_trail_is_whole_and_archived(stage)
    runs = _runs(stage.story)
    assert runs["resume-after-io-error", "dry-run"] == runs["resume-after-io-error", "done"] == 1
    assert runs["limit-noisy-disk", "done"] == runs["limit-noisy-disk", "undone"] == 1


def _full_storage_under_dry_run_changes_nothing(stage: Stage) -> None:
    guest, webhooks, story, prometheus = stage.guest, stage.webhooks, stage.story, stage.alerting.prometheus
    story.begin(resume_after_io_error="dry-run")
    guest.fill_storage()
    before = guest.describes()
    prometheus.wait_for('libvirt_domain_state_reason{domain="victim",state="paused",reason="io_error"} == 1')
    prometheus.wait_for('libvirt_domain_events_total{domain="victim",event="io_error",detail=~".*enospc.*"} == 1')
    alert = webhooks.wait_for("LibvirtDomainPausedByError", "victim", "firing")
    assert alert["labels"]["reason"] == "io_error"
    webhooks.wait_for("LibvirtDomainOutOfSpace", "victim", "firing")
    would = story.wait_for("rule-would")
    assert (would["rule"], would["alert"]) == ("resume-after-io-error", "LibvirtDomainPausedByError")
    assert would["outcome"] == "let its CPUs go on"
    assert would["fingerprint"] == alert["fingerprint"]
    assert guest.describes() == before
    assert "begin" not in [record["event"] for record in story.told()]

    with pytest.raises(ControlError, match="paused again"):
        stage.operator("domain.resume", "victim")
    guest.make_room()
    assert stage.operator("domain.resume", "victim").after["state"] == "running"
    webhooks.wait_for("LibvirtDomainPausedByError", "victim", "resolved")
    story.wait_for("rule-resolved")
    guest.take_room()


def _full_storage_under_approve_goes_on_once_there_is_room(stage: Stage) -> None:
    guest, story = stage.guest, stage.story
    story.begin(resume_after_io_error="approve")
    guest.fill_storage()
    story.wait_for("rule-pending")
    status, document = story.service.ask("GET", "/api/v1/pending", token="reader")
    waiting = document["pending"][0]
    assert (status, waiting["rule"], waiting["domain"]) == (200, "resume-after-io-error", "victim")
    assert not guest.is_running()
    done = story.service.run("control", "pending", "approve", str(waiting["id"]))
    assert (done.returncode, done.stderr) == (0, "")
    # It is tried, since only the guest's own write tells whether there is room; then again.
    assert "paused again" in story.wait_for("rule-will-retry")["outcome"]
    assert not guest.is_running()
    guest.make_room()
    acted = story.wait_for("rule-acted")
    assert acted["outcome"] == "done"
    assert guest.is_running()
    approved = story.wait_for("rule-approved")
    assert approved["way"] == "command line"
    assert approved["actor"]
    ends = [record for record in story.told() if record["event"] == "end"]
    assert f"approved by {approved['actor']}" in ends[-1]["actor"]
    assert ends[-1]["after"]["state"] == "running"
    story.wait_for("rule-resolved")
    stage.alerting.wait_firing("LibvirtDomainPausedByError", "victim", now=False)


def _a_noisy_disk_under_enforce_is_limited_until_the_alert_resolves(stage: Stage, load_guest: GuestConsole) -> None:
    guest, webhooks, story = stage.guest, stage.webhooks, stage.story
    story.rules.prometheus = stage.alerting.prometheus.url("/")
    story.begin(limit_noisy_disk="enforce")
    load_guest.order("wrate 40960")
    guest.write_steadily(2 << 20)
    alert = webhooks.wait_for("LibvirtDomainDiskNoisy", "victim", "firing")
    assert alert["labels"]["target_device"] == "vda"
    acted = story.wait_for("rule-acted")
    _measured(next(record for record in story.told() if record["event"] == "begin"), acted)
    assert guest.iotune() == {"total_bytes_sec": 200704}
    webhooks.wait_for("LibvirtDomainDiskNoisy", "victim", "resolved")  # the limit itself made it quiet
    guest.write_steadily(0)
    load_guest.order("idle")
    eventually(lambda: [r for r in story.told() if r.get("outcome") == "undone"], "the limit is lifted")
    assert guest.iotune() == {}
    assert webhooks.alerts("LibvirtDomainDiskNoisy", "load", "firing") == []
    # Somebody plays the same alert again: Prometheus, asked back, knows better.
    story.begin(limit_noisy_disk="enforce")
    played = {"alerts": [{**alert, "startsAt": datetime.now(UTC).isoformat()}]}
    assert story.service.ask("POST", "/api/v1/alerts", played, token="operator")[0] == 202
    assert story.wait_for("rule-skipped")["skipped"] == "resolved"
    assert guest.iotune() == {}
    story.rules.prometheus = ""


def _the_trail_is_whole_and_archived(stage: Stage) -> None:
    guest, story = stage.guest, stage.story
    done = story.service.run("control", "audit", "--domain", "victim", "--verify", "--newest", "200", "-o", "json")
    assert done.returncode == 0, done.stderr
    local = [record for record in story.trail.records() if _is_of(record, guest.uuid)]
    assert len(local) > 15

    def archived() -> bool:
        with MongoClient(stage.database.uri(60), tz_aware=True, uuidRepresentation="standard") as client:
            found = list(archived_records(client["virtgauge"], domain=str(UUID(guest.uuid))))
        return [record["hash"] for record in found] == [record["hash"] for record in local]

    eventually(archived, "the archive has the guest's whole story", 30)


def _runs(story: Story) -> dict[tuple[str, str], float]:
    """Each rule's runs by result, as the service's page counts them."""
    page = story.service.ask("GET", "/metrics", token="reader")[1]
    runs = re.findall(r'^virtgauge_control_rule_runs_total{result="(.*)",rule="(.*)"} (.*)$', page, re.M)
    return {(rule, result): float(count) for result, rule, count in runs}


def test_what_a_rule_cannot_do_wakes_people(
    guest: MisbehavingGuest, webhooks: RecordedWebhooks, story: Story, operator: Operator
) -> None:
    """The storage stays full: the rule gives up, its metric says so, Prometheus fires, Alertmanager tells people."""
    guest.take_room()
    story.rules.tries = 1
    story.begin(resume_after_io_error="enforce")
    guest.fill_storage()
    assert "paused again" in story.wait_for("rule-failed")["outcome"]
    assert not guest.is_running()
    alert = webhooks.wait_for("VirtgaugeRuleFailed", "", "firing")
    assert (alert["labels"]["rule"], alert["labels"]["result"]) == ("resume-after-io-error", "failed")
    begun = [record for record in story.told() if record["event"] == "begin"]
    assert len(begun) == 2
    story.rules.tries = 240
    story.begin()
    guest.make_room()
    operator("domain.resume", "victim")


def test_memory_pressure_under_enforce_raises_the_balloon(
    guest: MisbehavingGuest, alerting: Alerting, webhooks: RecordedWebhooks, story: Story
) -> None:
    story.begin(more_memory_for_pressed="enforce")
    guest.hold_memory(45)
    alerting.restart_exporter()
    webhooks.wait_for("LibvirtDomainMemoryPressure", "victim", "firing")
    assert story.wait_for("rule-acted")["outcome"] == "done"
    assert guest.balloon_mib() == CURRENT_MIB + 32
    guest.hold_memory(0)
    story.begin()
    alerting.restart_exporter()
    webhooks.wait_for("LibvirtDomainMemoryPressure", "victim", "resolved")


def test_a_panic_is_dumped_and_restarted_once_approved(
    guest: MisbehavingGuest, alerting: Alerting, webhooks: RecordedWebhooks, story: Story, operator: Operator
) -> None:
    story.begin(dump_and_restart_crashed="approve")
    guest.panic()
    prometheus = alerting.prometheus
    prometheus.wait_for('libvirt_domain_state{domain="victim",state="crashed"} == 1')
    prometheus.wait_for('libvirt_domain_state_reason{domain="victim",state="crashed",reason="panicked"} == 1')
    prometheus.wait_for('libvirt_domain_events_total{domain="victim",event="crashed",detail="panicked"} == 1')
    webhooks.wait_for("LibvirtDomainCrashed", "victim", "firing")
    with pytest.raises(RefusedError, match="crashed"):
        operator("domain.core-dump", "victim", then="reset")

    story.wait_for("rule-pending")
    number = story.service.ask("GET", "/api/v1/pending", token="reader")[1]["pending"][0]["id"]
    assert story.service.ask("POST", f"/api/v1/pending/{number}/approve", {}, token="reader")[0] == 403
    assert story.service.ask("POST", f"/api/v1/pending/{number}/approve", {}, token="operator")[0] == 200
    assert story.service.problem("POST", f"/api/v1/pending/{number}/refuse", {}, token="operator")[0] == 409
    story.wait_for("rule-acted")
    assert guest.is_running()
    ended = next(record for record in story.told() if record["event"] == "end")
    assert (ended["operation"], ended["way"]) == ("domain.core-dump", "webhook")
    assert "approved by operator" in ended["actor"]
    assert Path(str(ended["file"])).stat().st_size > 10 << 20
    story.wait_for("rule-resolved")
    told = [record["event"] for record in story.told()]
    steps = [told.index(f"rule-{word}") for word in ("pending", "approved", "acts", "acted", "resolved")]
    assert steps == sorted(steps)
    assert told.index("rule-acts") < told.index("begin") < told.index("end") < told.index("rule-acted")
    assert _runs(story)["dump-and-restart-crashed", "done"] == 1


def test_a_guest_whose_qemu_died_is_started_again(stage: Stage, hypervisor: PrivateHypervisor) -> None:
    guest, story, alerting = stage.guest, stage.story, stage.alerting
    story.begin(restart_crashed="enforce")
    before = guest.describes()
    stopped = 'sum(libvirt_domain_events_total{domain="victim",event="stopped",detail=~"crashed|failed"})'
    stopped_before = alerting.prometheus.value(stopped) or 0
    os.kill(hypervisor.qemu_pid(guest.name), signal.SIGKILL)
    # It may be running again before any scrape sees it off; that it stopped is counted.
    alerting.prometheus.wait_for(f"{stopped} > {stopped_before}")
    assert story.wait_for("rule-acted")["outcome"] == "done"
    assert guest.is_running()
    assert guest.describes() != before
    (begun,) = [record for record in story.told() if record["event"] == "begin"]
    assert (begun["operation"], begun["before"]["state"]) == ("domain.start", "shutoff")
    assert _runs(story)["restart-crashed", "done"] == 1


def _is_of(record: Record, uuid: str) -> bool:
    subject = record.get("subject")
    return isinstance(subject, dict) and subject.get("uuid") == uuid


def _measured(begun: Record, acted: Record) -> None:
    """Logs the times for docs/alert-driven-control.md (--log-cli-level=info); asserts none, as machines differ."""
    fired_s = datetime.fromisoformat(str(acted["starts_at"])).timestamp()
    begun_s = datetime.fromisoformat(str(begun["time"])).timestamp()
    _log.info("firing to act begun %.2f s, webhook to outcome %.3f s, load %.1f", begun_s - fired_s, acted["seconds"],
              os.getloadavg()[0])
    assert fired_s < begun_s

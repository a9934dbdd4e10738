"""kill -9 of the control service at each stage of a rule's act on a real guest, each stage held still first.

At most once: what was not begun is done at the next start, what was begun is unknown, told, and never repeated.
"""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from exporter.control.audit import Trail
from exporter.control.folders import Folders
from exporter.control.locks import Locks
from exporter.demonstration.private_hypervisor import PrivateHypervisor
from tests.control_service import ControlService
from tests.live.operating import eventually
from tests.live.sector_guests import SectorGuest, define, saying

RULES = """\
here: ['instance = alpha']
rules:
  - name: suspend-it
    mode: {mode}
    match: [alertname = Bad]
    expect: {{state: [running]}}
    action: {{operation: domain.suspend}}
    undo: {{operation: domain.resume}}
    cooldown: 0s
"""


class Scene:
    """A service with one rule, a guest that runs, and a trail to read."""

    def __init__(self, service: ControlService, guest: SectorGuest, hypervisor: PrivateHypervisor) -> None:
        self.service = service
        self.guest = guest
        self.hypervisor = hypervisor
        self.trail = Trail(service.state / "control" / "audit.jsonl")
        labels = {"alertname": "Bad", "instance": "alpha", "domain": guest.name}
        self.alert = {"alerts": [{"status": "firing", "labels": labels, "startsAt": datetime.now(UTC).isoformat()}]}

    def mode(self, mode: str) -> None:
        (self.service.folder / "rules.yml").write_text(RULES.format(mode=mode))

    def start(self) -> None:
        self.service.start(f"--control.rules-file={self.service.folder}/rules.yml")

    def send(self, status: str = "firing") -> None:
        body = {"alerts": [{**self.alert["alerts"][0], "status": status}]}
        assert self.service.ask("POST", "/api/v1/alerts", body, token="alerts")[0] == 202

    def kill(self) -> None:
        self.service.stop(signal.SIGKILL)

    def count(self, event: str) -> int:
        if not self.trail.path.exists():
            return 0
        return [record["event"] for record in self.trail.records()].count(event)

    def wait_for(self, event: str, count: int = 1) -> None:
        eventually(lambda: self.count(event) >= count, f"{event} in the trail", 30)

    def state(self) -> str:
        return self.hypervisor.virsh("domstate", self.guest.name).strip()

    @contextmanager
    def trail_held(self) -> Iterator[None]:
        """Nobody can write to the audit trail meanwhile."""
        with self.trail.path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def qemu_held(self) -> Iterator[None]:
        """libvirt waits for the guest's QEMU meanwhile."""
        pid = self.hypervisor.qemu_pid(self.guest.name)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def pending(self) -> list[Any]:
        return list(self.service.ask("GET", "/api/v1/pending", token="reader")[1]["pending"])

    def wait_for_duplicate(self) -> None:
        """Twice where the alert was in the queue still, when the service was killed."""
        series = 'virtgauge_control_rule_skips_total{reason="duplicate",rule="suspend-it"} '

        def seen() -> bool:
            page = self.service.ask("GET", "/metrics", token="reader")[1]
            return series in page and "virtgauge_control_alerts_waiting 0.0" in page

        eventually(seen, "the duplicate", 30)

    def told_as_unknown_and_not_repeated(self) -> None:
        """After a new start, with the alert sent again as Alertmanager does."""
        begun = self.count("begin")
        self.start()
        self.wait_for("rule-interrupted")
        self.send()
        self.wait_for_duplicate()
        assert self.count("begin") == begun
        (told,) = [record for record in self.trail.records() if record["event"] == "rule-interrupted"]
        assert "unknown" in str(told["outcome"])
        assert "not repeated" in str(told["outcome"])
        self.trail.verify()


@pytest.fixture
def scene(hypervisor: PrivateHypervisor, tmp_path: Path) -> Iterator[Scene]:
    guest = define(hypervisor, "judged", saying("UP"))
    hypervisor.virsh("start", guest.name)
    scene = Scene(ControlService(tmp_path, hypervisor.uri), guest, hypervisor)
    scene.mode("enforce")
    scene.start()
    yield scene
    scene.kill()
    hypervisor.virsh("destroy", guest.name)
    hypervisor.virsh("undefine", guest.name)


def test_marked_but_not_begun(scene: Scene) -> None:
    scene.service.ask("POST", "/api/v1/rules:go", {}, token="operator")  # so that there is a trail to hold
    with scene.trail_held():
        scene.send()
        waits = "virtgauge_control_alerts_waiting 1.0"
        eventually(lambda: waits in scene.service.ask("GET", "/metrics", token="reader")[1], "it is being judged", 30)
        scene.kill()
    assert (scene.count("begin"), scene.state()) == (0, "running")
    scene.start()
    # Marked already, and then it is unknown; or not yet, and then it is judged now: once in all.
    eventually(lambda: scene.count("rule-interrupted") + scene.count("rule-acted") == 1, "its outcome", 30)
    assert scene.state() == ("paused" if scene.count("rule-acted") else "running")
    assert scene.count("begin") == scene.count("rule-acted")


def test_libvirt_is_asked(scene: Scene) -> None:
    with scene.qemu_held():
        scene.send()
        scene.wait_for("begin")
        scene.kill()
    scene.told_as_unknown_and_not_repeated()


def test_done_but_not_written_down(scene: Scene) -> None:
    with scene.qemu_held():
        scene.send()
        scene.wait_for("begin")
        held = scene.trail_held()
        held.__enter__()
    try:
        eventually(lambda: scene.state() == "paused", "libvirt has done it", 30)
        scene.kill()
    finally:
        held.__exit__(None, None, None)
    assert scene.count("end") == 0
    scene.told_as_unknown_and_not_repeated()
    assert scene.state() == "paused"
    # The operation's own part says what is there now.
    assert scene.count("interrupted") == 1


def test_it_waits_for_a_person(scene: Scene) -> None:
    scene.mode("approve")
    scene.send()
    scene.wait_for("rule-pending")
    (before,) = scene.pending()
    scene.kill()
    scene.start()
    assert scene.pending() == [before]
    assert scene.state() == "running"
    assert scene.service.ask("POST", f"/api/v1/pending/{before['id']}/approve", {}, token="operator")[0] == 200
    scene.wait_for("rule-acted")
    assert (scene.count("begin"), scene.state()) == (1, "paused")


def test_a_person_says_yes_while_no_service_runs(scene: Scene) -> None:
    scene.mode("approve")
    scene.send()
    scene.wait_for("rule-pending")
    (before,) = scene.pending()
    scene.kill()
    assert scene.service.run("control", "pending", "approve", str(before["id"])).returncode == 0
    assert scene.state() == "running"
    scene.start()
    scene.wait_for("rule-acted")
    assert (scene.count("begin"), scene.state()) == (1, "paused")


def test_libvirt_is_asked_to_undo(scene: Scene) -> None:
    scene.send()
    scene.wait_for("rule-acted")
    with scene.qemu_held():
        scene.send("resolved")
        scene.wait_for("begin", 2)
        scene.kill()
    scene.start()
    scene.wait_for("rule-interrupted")
    scene.send("resolved")
    waits = "virtgauge_control_alerts_waiting 0.0"
    eventually(lambda: waits in scene.service.ask("GET", "/metrics", token="reader")[1], "it is judged", 30)
    assert scene.count("begin") == 2
    scene.trail.verify()


def test_the_guest_is_busy_with_another_act(scene: Scene) -> None:
    lock = Locks(Folders(scene.service.state / "control")).acquire(f"domain-{scene.guest.uuid}", "the test")
    scene.send()
    scene.wait_for("refused")
    scene.kill()
    lock.release()
    assert (scene.count("begin"), scene.state()) == (0, "running")
    scene.start()
    scene.wait_for("rule-acted")
    assert (scene.count("begin"), scene.state()) == (1, "paused")


def test_written_down(scene: Scene) -> None:
    scene.send()
    scene.wait_for("rule-acted")
    scene.kill()
    scene.hypervisor.virsh("resume", scene.guest.name)
    scene.start()
    scene.send()
    scene.wait_for_duplicate()
    assert (scene.count("begin"), scene.count("rule-interrupted"), scene.state()) == (1, 0, "running")

"""What operators do to the scene's guests while it is watched: through the control service, so that it counts them."""

from __future__ import annotations

import time
from collections.abc import Callable

from exporter.demonstration.private_hypervisor import PrivateHypervisor
from tests.control_service import ControlService

PAUSE_S = 12


def arrange(hosts: dict[str, PrivateHypervisor]) -> None:
    """At the start: a squeezed balloon, a snapshot, and a guest that starts with its host and is off."""
    beta = hosts["beta"]
    beta.virsh("setmem", "build1", "84M", "--live")
    spare = beta.virsh("dumpxml", "mail1", "--inactive").replace("<name>mail1</name>", "<name>spare1</name>")
    file = beta.folder / "definitions" / "spare1.xml"
    file.write_text("\n".join(line for line in spare.splitlines() if "<uuid>" not in line and "<mac " not in line))
    beta.virsh("define", str(file))
    beta.virsh("autostart", "spare1")
    beta.virsh("snapshot-create-as", "web2", "before-the-update")


def operate(control: ControlService, seconds: float, mishaps: Callable[[], None] | None = None) -> None:
    """For so long: guests paused and resumed, a dry run, refusals and a failure; `mishaps` at half time."""
    end_s = time.monotonic() + seconds
    turn = 0
    while (left := end_s - time.monotonic()) > 0:
        if mishaps is not None and left < seconds / 2:
            mishaps()
            mishaps = None
        for verb, guest, body in plan(turn):
            control.ask("POST", f"/api/v1/domains/{guest}/{verb}", body)
            if turn % 3 == 0:
                control.ask("GET", "/api/v1/domains", token="somebody-else")
            time.sleep(min(PAUSE_S, max(0.0, left)))
        turn += 1


def plan(turn: int) -> list[tuple[str, str, dict[str, object]]]:
    """The operations of one turn; every third one has those that are refused."""
    usual: list[tuple[str, str, dict[str, object]]] = [
        ("suspend", "web1", {"reason": "maintenance of the shop"}), ("resume", "web1", {}),
        ("suspend", "batch1", {"dry_run": True})]
    return usual if turn % 3 else [
        *usual, ("suspend", "db1", {"reason": "its storage is moved"}), ("resume", "db1", {}), ("start", "web1", {}),
        ("suspend", "nobody", {}), ("reset", "db1", {}),
        ("reboot", "db1", {"parameters": {"mode": "agent"}})]

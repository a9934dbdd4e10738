"""New guests, from fields to seen alive: disk import, ISO, network boot, direct kernel, cloud-init seed.

No API of libvirt tells that a guest did not boot, so success is judged by something seen within a time: a text on
its console, its agent, its DHCP lease.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import libvirt
from pydantic import Field, JsonValue

from exporter.control.boot_sources import require_boot_network, require_bootable_iso, require_efi, require_kernel
from exporter.control.connection import Session
from exporter.control.definition import DefinesDomain
from exporter.control.domain import domain_state, live_state
from exporter.control.errors import BusyError, InvalidError, TimedOutError
from exporter.control.folders import Folders
from exporter.control.guest_agent import agent_state
from exporter.control.guest_fields import GuestFields, OneLine
from exporter.control.guest_xml import console_file, guest_xml, host_type
from exporter.control.operation import Call, Operation, Plan, Progress
from exporter.control.seed import user_data, write_seed

_CONSOLE_READ_BYTES = 4 << 20
_CONSOLE_SHOWN_CHARACTERS = 400


class ProvisionParameters(GuestFields):
    expect_text: Annotated[OneLine, Field(max_length=200)] = Field(
        default="", description="A text that the guest says on its serial console once it is up."
    )
    expect_agent: bool = Field(default=False, description="The guest agent answers once it is up.")
    expect_lease: bool = Field(default=False, description="It has a DHCP lease of a libvirt network once it is up.")
    within_s: float = Field(default=300.0, gt=0, le=7200, description="Seconds in which that must be seen.")
    if_not_seen: Literal["keep", "remove"] = Field(default="keep", description="What becomes of a guest not seen up.")
    seed_hostname: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.\-]{0,62}$")] | None = Field(
        default=None, description="Give it a cloud-init seed with this host name."
    )
    seed_ssh_key: tuple[OneLine, ...] = Field(default=(), max_length=32, description="Public keys for the seed.")
    seed_user_data: Annotated[str, Field(max_length=65536)] | None = Field(
        default=None, description="The seed's whole user-data instead; it is kept out of the audit trail."
    )


class Provision(DefinesDomain[ProvisionParameters]):
    """`details.seen`: what was seen, with the seconds after the start."""

    verb = "provision"
    area = "provisioning"
    summary = "Defines a guest, boots it, and waits until it is seen up."
    parameters = ProvisionParameters
    long_running = True

    def time_needed_s(self, parameters: ProvisionParameters) -> float:
        return parameters.within_s + 120

    def audited(self, parameters: ProvisionParameters) -> dict[str, JsonValue]:
        return parameters.model_dump(mode="json", exclude_defaults=True, exclude={"seed_user_data"})

    def identity(self, parameters: ProvisionParameters) -> tuple[str, str | None]:
        return parameters.name, parameters.uuid

    def xml(self, call: Call, parameters: ProvisionParameters, kind: str) -> str:
        # Known before the act, so that the seed, the console file and the definition agree.
        seed = _seed_file(call.folders, parameters.name) if _wants_seed(parameters) else None
        return guest_xml(parameters, call.folders, kind, call.subject.uuid, seed)

    def check(self, call: Call, parameters: ProvisionParameters) -> None:
        super().check(call, parameters)
        sources = (parameters.disks, parameters.cdrom, parameters.kernel, parameters.bootloader, parameters.interfaces)
        if not any(sources):
            raise InvalidError("there is nothing to boot from", next_step="give a disk, ISO, kernel or network")
        if parameters.kernel:
            require_kernel(call.folders.image(parameters.kernel, "the kernel"))
        order = parameters.boot or (("hd",) if parameters.disks else ("cdrom",) if parameters.cdrom else ("network",))
        if order[0] == "cdrom" and parameters.cdrom and not parameters.kernel:
            require_bootable_iso(call.folders.image(parameters.cdrom, "the ISO"))
        if order[0] == "network" and not parameters.kernel and not parameters.bootloader:
            self._check_network(call, parameters)
        if parameters.firmware == "efi" and call.session.driver == "QEMU":
            require_efi(call.session, parameters.machine, parameters.type or host_type(call.session))
        if parameters.expect_text and not parameters.console_log:
            raise InvalidError("a text is expected of a console that is not kept", next_step="give --console-log")

    @staticmethod
    def _check_network(call: Call, parameters: ProvisionParameters) -> None:
        first = parameters.interfaces[0] if parameters.interfaces else None
        if first is not None and first.network:
            require_boot_network(call.session, first.network)
        elif first is None or not first.bridge:
            raise InvalidError("a guest cannot boot from QEMU's user network", next_step="give a network or bridge")

    def plan(self, call: Call, parameters: ProvisionParameters) -> Plan:
        plan = super().plan(call, parameters)
        wanted = ", ".join(_expected(parameters))
        plan.steps.append("boot it")
        if wanted:
            plan.steps.append(f"wait up to {parameters.within_s:g} s for: {wanted}")
        else:
            plan.warnings.append("whether it boots is not watched: expect a text, the agent or a lease")
        return plan

    def act(self, call: Call, parameters: ProvisionParameters) -> None:
        if _wants_seed(parameters):
            hostname = parameters.seed_hostname or parameters.name
            text = parameters.seed_user_data or user_data(hostname, parameters.seed_ssh_key)
            # QEMU passes through and reads the one file that libvirt makes its own; nobody lists the others.
            call.folders.private(call.folders.seeds, mode=0o711)
            write_seed(_seed_file(call.folders, parameters.name), text, parameters.name, hostname)
        call.progress(Progress("defining"))
        super().act(call, parameters)
        call.intent({"uuid": call.details["uuid"]})
        domain = call.session.connection.lookupByUUIDString(call.details["uuid"])
        console = console_file(call.folders, str(call.details["uuid"]))
        heard_from = console.stat().st_size if console.exists() else 0
        try:
            domain.create()
            self._watch(call, parameters, domain, console, heard_from)
        except (libvirt.libvirtError, TimedOutError):
            if parameters.if_not_seen == "remove":
                _removed(domain)
                call.details["removed"] = True
            raise

    def _watch(
        self, call: Call, parameters: ProvisionParameters, domain: Any, console: Path, heard_from: int
    ) -> None:
        started_s = time.monotonic()
        wanted = _expected(parameters)
        seen: dict[str, JsonValue] = {}
        ways = {
            "text": lambda: parameters.expect_text in _heard(console, heard_from),
            "agent": lambda: _agent_answers(call, domain),
            "lease": lambda: bool(domain.interfaceAddresses(libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE)),
        }

        def all_seen() -> bool:
            for way in wanted:
                if way not in seen and ways[way]():
                    seen[way] = round(time.monotonic() - started_s, 1)
                    call.progress(Progress(f"seen: {way}"))
            return len(seen) == len(wanted) or not domain.isActive()

        call.progress(Progress(f"waiting for: {', '.join(wanted)}" if wanted else "started"))
        call.deadline.within(parameters.within_s).wait_for(all_seen, poll_s=0.2)
        call.details["seen"] = seen
        if len(seen) < len(wanted):
            missing = ", ".join(way for way in wanted if way not in seen)
            said = _heard(console, heard_from).strip()[-_CONSOLE_SHOWN_CHARACTERS:]
            raise TimedOutError(
                f"domain {parameters.name} is {live_state(domain)}, and was not seen up within"
                f" {parameters.within_s:g} s (missing: {missing}); its console's end: {said!r}",
                next_step="look at its console; it is kept unless --if-not-seen remove was given",
            )

    def aftermath(self, session: Session, folders: Folders, begun: Mapping[str, JsonValue]) -> str:
        try:
            state = domain_state(session.connection.lookupByUUIDString(str(begun.get("uuid"))))["state"]
        except libvirt.libvirtError:
            return "interrupted before the domain was defined; nothing is left of it"
        return f"interrupted; the domain is defined and {state}; whether it came up was not watched to the end"


def _agent_answers(call: Call, domain: Any) -> bool:
    with suppress(BusyError):  # the metrics' reading asks it just now
        return agent_state(domain, call.folders) != "silent"
    return False


def _expected(parameters: ProvisionParameters) -> list[str]:
    wanted = (("text", parameters.expect_text), ("agent", parameters.expect_agent), ("lease", parameters.expect_lease))
    return [way for way, asked in wanted if asked]


def _wants_seed(parameters: ProvisionParameters) -> bool:
    return bool(parameters.seed_hostname or parameters.seed_user_data or parameters.seed_ssh_key)


def _seed_file(folders: Folders, name: str) -> Path:
    # The name's bytes in hexadecimal: any name is a file name then, and none is another's.
    return folders.seeds / f"{name.encode().hex()[:200]}.iso"


def _heard(console: Path, heard_from: int) -> str:
    try:
        with console.open("rb") as said:
            said.seek(heard_from)
            return said.read(_CONSOLE_READ_BYTES).decode(errors="replace")
    except FileNotFoundError:
        return ""


def _removed(domain: Any) -> None:
    if domain.isActive():
        domain.destroy()
    domain.undefine()


OPERATIONS: tuple[Operation[Any], ...] = (Provision(),)

"""Look-up and listing: which domains there are, one domain's details, its XML without secrets."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any, ClassVar, Literal

import libvirt
from pydantic import Field, JsonValue

from exporter.control.connection import Session
from exporter.control.domain import DomainOperation, domain_state, uptime_s
from exporter.control.domain_devices import domain_devices
from exporter.control.operation import Call, NoParameters, Operation, Parameters, Role, State, Subject


class ListParameters(Parameters):
    which: Literal["all", "active", "inactive"] = Field(
        default="all", description="active: running or paused; inactive: defined and not running; all."
    )


class ListDomains(Operation[ListParameters]):
    """`rows`: one State a domain, by name. `counts`: of all, active, inactive, persistent, transient."""

    noun = "domain"
    verb = "list"
    area = "lookup"
    summary = "Lists the domains with their state."
    parameters = ListParameters
    role = Role.READER
    reads = True
    takes_subject = False

    def find(self, session: Session, reference: str | None, parameters: ListParameters) -> Subject:
        return Subject(kind="host", key="host", name="")

    def state(self, call: Call, parameters: ListParameters) -> State:
        everything = [domain_state(handle) for handle in call.session.connection.listAllDomains(0)]
        # A transient domain may have ended between the listing and the look at it.
        rows = sorted((row for row in everything if row["state"] != "gone"), key=lambda row: str(row["name"]))
        wanted = {"all": (True, False), "active": (True,), "inactive": (False,)}[parameters.which]
        counts: dict[str, JsonValue] = {
            "all": len(rows),
            "active": sum(bool(row["active"]) for row in rows),
            "inactive": sum(not row["active"] for row in rows),
            "persistent": sum(bool(row["persistent"]) for row in rows),
            "transient": sum(not row["persistent"] for row in rows),
        }
        return {"rows": [row for row in rows if row["active"] in wanted], "counts": counts}


class ShowDomain(DomainOperation[NoParameters]):
    verb = "show"
    area = "lookup"
    summary = "Shows one domain: state, memory, vCPUs, job, devices."
    role = Role.READER
    reads = True

    def state(self, call: Call, parameters: NoParameters) -> State:
        handle = call.subject.handle
        return {
            **domain_state(handle), **_sizes(handle), **_job(handle), **_uptime(handle), **domain_devices(handle)
        }  # fmt: skip


def _sizes(handle: Any) -> State:
    # info() is answered from libvirtd's memory, and so also for a guest whose monitor hangs.
    _state, maximum_kib, current_kib, vcpus, cpu_time_ns = handle.info()
    return {
        "os_type": handle.OSType(),
        "maximum_memory_kib": maximum_kib,
        "memory_kib": current_kib,
        "vcpus": vcpus,
        "cpu_time_s": round(cpu_time_ns / 1e9, 3),
    }


def _uptime(handle: Any) -> State:
    up_s = uptime_s(handle)
    if up_s is None:
        return {}
    return {"uptime_s": up_s, "started": datetime.fromtimestamp(time.time() - up_s, UTC).isoformat(timespec="seconds")}


def _job(handle: Any) -> State:
    # Not jobInfo: that waits 30 s for a domain that another call holds. This never waits.
    try:
        control, _detail, held_ms = handle.controlInfo()
    except libvirt.libvirtError:
        return {}
    words = {
        libvirt.VIR_DOMAIN_CONTROL_OK: "none",
        libvirt.VIR_DOMAIN_CONTROL_JOB: "running",
        libvirt.VIR_DOMAIN_CONTROL_OCCUPIED: "monitor busy",
    }
    return {"job": words.get(control, "error"), **({"job_s": held_ms / 1000} if held_ms else {})}


class XmlParameters(Parameters):
    inactive: bool = Field(default=False, description="The configuration of the next boot, not the running one.")


class DomainXml(DomainOperation[XmlParameters]):
    verb = "xml"
    area = "lookup"
    summary = "Shows a domain's XML, without its secrets."
    parameters = XmlParameters
    role = Role.READER
    reads = True
    # Never VIR_DOMAIN_XML_SECURE: it adds VNC and SPICE passwords.
    flags: ClassVar[dict[bool, int]] = {False: 0, True: libvirt.VIR_DOMAIN_XML_INACTIVE}

    def state(self, call: Call, parameters: XmlParameters) -> State:
        return {"xml": call.subject.handle.XMLDesc(self.flags[parameters.inactive])}


OPERATIONS: tuple[Operation[Any], ...] = (ListDomains(), ShowDomain(), DomainXml())

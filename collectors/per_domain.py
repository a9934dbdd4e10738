"""Statistics by a domain's own calls, for drivers whose bulk call gives little or nothing, under the bulk call's keys.

LXC, Xen, bhyve and the test driver, say.  What such a driver does not support it is asked once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import libvirt

from .domain_xml import DomainXMLError, parse
from .snapshot import Value
from .support import Support

_MEMORY = {"actual": "current", "last_update": "last-update"}
_BLOCK = ("rd.reqs", "rd.bytes", "wr.reqs", "wr.bytes")
_INTERFACE = tuple(f"{way}.{word}" for way in ("rx", "tx") for word in ("bytes", "pkts", "errs", "drop"))
_SIZES = ("capacity", "allocation", "physical")

Stats = dict[str, Value]


def state_stats(domain: Any) -> Stats:
    """State and reason, by a call of the domain's own.  Raises libvirtError."""
    state, reason = domain.state()
    return {"state.state": state, "state.reason": reason}


def add_missing(domain: Any, stats: Stats, groups: Iterable[str], support: Support) -> None:
    """Add what the domain's own calls give of each group that ``stats`` have nothing of.

    Raises libvirtError where the connection is lost or the domain is gone; any other failure costs its values only.
    """
    for group in groups:
        add = _GROUPS.get(group)
        if add is not None and not any(key.startswith(_PREFIXES[group]) for key in stats):
            add(domain, stats, support)


def _ask(support: Support, name: str, call: Callable[[], Any]) -> Any:
    try:
        return support.ask(name, call)
    except libvirt.libvirtError as error:
        if error.get_error_domain() == libvirt.VIR_FROM_RPC or error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            raise
        return None  # of this domain or device only: it is asked again


def _state(domain: Any, stats: Stats, support: Support) -> None:
    stats.update(state_stats(domain))


def _cpu(domain: Any, stats: Stats, support: Support) -> None:
    info = _ask(support, "info", domain.info)
    if info is not None:
        stats["cpu.time"] = info[4]


def _vcpu(domain: Any, stats: Stats, support: Support) -> None:
    info = _ask(support, "info", domain.info)
    if info is not None:
        stats["vcpu.current"] = info[3]
    found = _ask(support, "vcpus", domain.vcpus)
    for number, state, time_ns, cpu in found[0] if found is not None else ():
        stats |= {f"vcpu.{number}.state": state, f"vcpu.{number}.time": time_ns, f"vcpu.{number}.cpu": cpu}


def _balloon(domain: Any, stats: Stats, support: Support) -> None:
    info = _ask(support, "info", domain.info)
    if info is not None:
        stats |= {"balloon.maximum": info[1], "balloon.current": info[2]}
    memory = _ask(support, "memoryStats", domain.memoryStats)
    stats |= {f"balloon.{_MEMORY.get(key, key)}": value for key, value in (memory or {}).items()}


def _devices(domain: Any, stats: Stats, support: Support) -> None:
    """Disks and interfaces, as the domain's XML names them."""
    definition = None
    try:
        text = _ask(support, "XMLDesc", lambda: domain.XMLDesc(0))
        definition = parse(text) if text is not None else None
    except DomainXMLError:
        pass
    if definition is None:
        return
    disks = [disk.target_device for disk in definition.disks if disk.target_device]
    for number, name in enumerate(disks if "block.count" not in stats else ()):
        counters = _ask(support, "blockStats", partial(domain.blockStats, name)) or ()
        sizes = _ask(support, "blockInfo", partial(domain.blockInfo, name)) or ()
        stats[f"block.{number}.name"] = name
        stats |= {f"block.{number}.{key}": value for key, value in zip(_BLOCK, counters, strict=False)}
        stats |= {f"block.{number}.{key}": value for key, value in zip(_SIZES, sizes, strict=False)}
    interfaces = [nic.target_device for nic in definition.interfaces if nic.target_device]
    for number, name in enumerate(interfaces if "net.count" not in stats else ()):
        counters = _ask(support, "interfaceStats", partial(domain.interfaceStats, name)) or ()
        stats[f"net.{number}.name"] = name
        stats |= {f"net.{number}.{key}": value for key, value in zip(_INTERFACE, counters, strict=False)}


_PREFIXES = {"state": "state.", "cpu-total": "cpu.", "vcpu": "vcpu.", "balloon": "balloon.", "block": "block.",
             "interface": "net."}
_GROUPS: dict[str, Callable[[Any, Stats, Support], None]] = {
    "state": _state, "cpu-total": _cpu, "vcpu": _vcpu, "balloon": _balloon, "block": _devices, "interface": _devices}

"""What a domain may use at most, from its live XML: beside what it does use, so that throttling shows.

The TUNABLE event, which is of <cputune> and <iotune> alone, has the XML read again, so these cost no call at a sample;
the others are as old as the inventory's XML may be.  The disks' limits are the inventory's.
"""

from __future__ import annotations

from collections.abc import Iterable
from xml.etree.ElementTree import Element

from .fields import Collector, Constant, Declaration, Info

_DOMAIN = ("domain",)
_CORES = {
    "": ("limit_vcpu_cores", "pCPUs that each vCPU may use", "<quota> / <period>"),
    "global_": ("limit_cores", "pCPUs that the domain may use", "<global_quota> / <global_period>"),
    "emulator_": ("limit_emulator_cores", "pCPUs that QEMU's own threads may use",
                  "<emulator_quota> / <emulator_period>"),
    "iothread_": ("limit_iothread_cores", "pCPUs that each I/O thread may use",
                  "<iothread_quota> / <iothread_period>"),
}
_MEMORY = {
    "hard_limit": ("limit_memory_hard_bytes", "Bytes of the host's memory that the domain's process may have"),
    "soft_limit": ("limit_memory_soft_bytes", "Bytes of the host's memory that the process keeps when memory is short"),
    "swap_hard_limit": ("limit_memory_swap_hard_bytes", "Bytes of memory and swap that the process may have"),
    "min_guarantee": ("limit_memory_guaranteed_bytes", "Bytes of memory that the domain is guaranteed"),
}
_WAYS = {"inbound": ("receive", "receive"), "outbound": ("transmit", "send")}
_UNITS = {"b": 1, "bytes": 1, "KB": 10**3, "k": 1 << 10, "KiB": 1 << 10, "MB": 10**6, "M": 1 << 20, "MiB": 1 << 20,
          "GB": 10**9, "G": 1 << 30, "GiB": 1 << 30, "TB": 10**12, "T": 1 << 40, "TiB": 1 << 40}
_UNLIMITED = 9007199254740991 * 1024  # VIR_DOMAIN_MEMORY_PARAM_UNLIMITED, in bytes
_MOST_VCPUS = 4096
_CPU_SHARES = "libvirt_domain_limit_cpu_shares"
_AFFINITY = "libvirt_domain_vcpu_affinity_info"


def _declarations() -> tuple[Declaration, ...]:
    found: list[Declaration] = [
        Info(_CPU_SHARES, "Weight of the domain against others when CPU time is short (domain XML <cputune><shares>, "
             "number).", _DOMAIN, source="domain XML <cputune><shares>", since="0.9.0"),
        Info(_AFFINITY, "Always 1; the pCPUs that the vCPU may run on, where the definition says it (domain XML "
             "<cputune><vcpupin>, else <vcpu cpuset>, text).", ("domain", "vcpu", "cpuset"),
             source="domain XML <cputune><vcpupin>", since="0.9.0")]
    found += [Info(f"libvirt_domain_{name}", f"{text} (domain XML <cputune> {source}, cores); absent without a limit.",
                   _DOMAIN, source=f"domain XML <cputune> {source}", since="0.9.4")
              for name, text, source in _CORES.values()]
    found += [Info(f"libvirt_domain_{name}", f"{text} (domain XML <memtune><{element}>, bytes); absent "
                   "without a limit.",
                   _DOMAIN, source=f"domain XML <memtune><{element}>", since="0.9.0")
              for element, (name, text) in _MEMORY.items()]
    for element, (way, verb) in _WAYS.items():
        source = f"domain XML <bandwidth><{element}>"
        found += [
            Info(f"libvirt_domain_interface_limit_{way}_{word}_bytes_per_second",
                 f"Bytes a second the guest may {verb} {text} ({source} {word}, bytes a second); absent "
                 "without a limit.",
                 ("domain", "target_device"), source=source, since="0.9.4")
            for word, text in (("average", "over time"), ("peak", "in a burst"))]
        found.append(
            Info(f"libvirt_domain_interface_limit_{way}_burst_bytes",
                 f"Bytes the guest may {verb} in one burst ({source} burst, bytes); absent without a limit.",
                 ("domain", "target_device"), source=source, since="0.9.4"))
    return tuple(found)


LIMITS = Collector(name="limits", help="What a domain may use at most: CPU, memory, network, pCPUs of its "
                   "vCPUs. Of a new limit of memory or network libvirt tells by no event: it shows within ten minutes.",
                   declarations=_declarations())


def limits(root: Element) -> tuple[Constant, ...]:
    """The limits in a domain's live XML, without the subject's label; only those that are set.  Never raises."""
    return (*_cpu(root), *_memory(root), *_interfaces(root))


def _cpu(root: Element) -> Iterable[Constant]:
    shares = _number(root.findtext("cputune/shares"))
    if shares:
        yield Constant(_CPU_SHARES, (), float(shares))
    for prefix, (name, _, _) in _CORES.items():
        quota = _number(root.findtext(f"cputune/{prefix}quota"))
        # libvirt's default period, where only a quota is given.
        period = _number(root.findtext(f"cputune/{prefix}period")) or 100_000
        if quota and quota < 1 << 44:  # libvirt's "unlimited" is -1 or 2^44 and more
            yield Constant(f"libvirt_domain_{name}", (), quota / period)
    for vcpu, cpuset in _affinity(root).items():
        yield Constant(_AFFINITY, (("vcpu", vcpu), ("cpuset", cpuset[:256])))


def _affinity(root: Element) -> dict[str, str]:
    """The pCPUs of each vCPU that is bound to some: the default of all vCPUs, and what is said of single ones."""
    found: dict[str, str] = {}
    vcpus = root.find("vcpu")
    default = vcpus.get("cpuset", "") if vcpus is not None else ""
    count = _number(vcpus.text) if vcpus is not None else None
    if default and count is not None:
        found = dict.fromkeys(map(str, range(min(count, _MOST_VCPUS))), default)
    for pin in root.iterfind("cputune/vcpupin"):
        vcpu, cpuset = pin.get("vcpu", ""), pin.get("cpuset", "")
        if _number(vcpu) is not None and cpuset:
            found[vcpu] = cpuset
    return found


def _memory(root: Element) -> Iterable[Constant]:
    for element, (name, _) in _MEMORY.items():
        found = root.find(f"memtune/{element}")
        number = _number(found.text) if found is not None else None
        unit = _UNITS.get(found.get("unit", "KiB")) if found is not None else None
        if number and unit and number * unit < _UNLIMITED:
            yield Constant(f"libvirt_domain_{name}", (), float(number * unit))


def _interfaces(root: Element) -> Iterable[Constant]:
    seen: set[str] = set()
    for interface in root.iterfind("devices/interface"):
        target = interface.find("target")
        device = target.get("dev", "") if target is not None else ""
        if not device or device in seen:
            continue
        seen.add(device)
        for element, (way, _) in _WAYS.items():
            limit = interface.find(f"bandwidth/{element}")
            if limit is None:
                continue
            for word in ("average", "peak", "burst"):
                number = _number(limit.get(word))
                if not number:
                    continue
                # libvirt hands its kilobytes to tc: "kbps" are 1000 bytes a second there, "kb" are 1024 bytes.
                end, unit = ("burst_bytes", 1024) if word == "burst" else (f"{word}_bytes_per_second", 1000)
                yield Constant(f"libvirt_domain_interface_limit_{way}_{end}", (("target_device", device),),
                               float(number * unit))


def _number(text: str | None) -> int | None:
    """A natural number as libvirt writes it; None for anything else."""
    text = (text or "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None

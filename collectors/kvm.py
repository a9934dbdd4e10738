"""What KVM counts of a domain and its vCPUs: exits, polling while halted, page faults, pages.

KVM's names carry no promise of stability, so those that mean something to an operator are declared with types and
units of their own; ``kvm.all`` gives the rest under their own names as a label.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from .bulk import group_bits
from .connection import Session
from .domain_groups import GroupsSource
from .fields import NANOSECOND, Collector, Declaration, Field, Kind
from .inventory import Inventory
from .periodic import RunningDomain
from .snapshot import Record, Value

_SINCE = "8.9.0"
GROUPS = ("cpu-total", "vcpu", "vm")

_VCPU_COUNTS = {
    "exits": "Exits of the vCPU to the host's kernel",
    "io_exits": "Exits for port I/O",
    "mmio_exits": "Exits for memory-mapped I/O",
    "irq_exits": "Exits for an interrupt of the host",
    "signal_exits": "Exits for a signal to QEMU",
    "halt_exits": "Exits because the guest halted the vCPU",
    "request_irq_exits": "Exits because QEMU asked for an interrupt window",
    "irq_window_exits": "Exits because the guest became ready for interrupts",
    "irq_injections": "Interrupts given to the vCPU",
    "nmi_injections": "Non-maskable interrupts given to the vCPU",
    "hypercalls": "Hypercalls of the guest",
    "insn_emulation": "Instructions that the kernel emulated",
    "insn_emulation_fail": "Instructions that the kernel could not emulate",
    "tlb_flush": "Flushes of the vCPU's translation cache",
    "halt_wakeup": "Times the halted vCPU was woken",
    "halt_attempted_poll": "Times the kernel polled before it let the halted vCPU sleep",
    "halt_successful_poll": "Polls that saw the wake-up come",
    "halt_poll_invalid": "Polls that ended with a wake-up of no use",
    "directed_yield_attempted": "Times the vCPU tried to give its pCPU to another vCPU",
    "directed_yield_successful": "Times the vCPU gave its pCPU to another vCPU",
    "preemption_reported": "Preemptions that were told to the guest",
    "preemption_other": "Preemptions that were not told to the guest",
    "nested_run": "Entries into a guest of the guest",
    "pf_taken": "Page faults that the kernel handled for the vCPU",
    "pf_fixed": "Page faults that the kernel resolved",
    "pf_emulate": "Page faults that led to emulation",
    "pf_guest": "Page faults that were given to the guest",
}
_VCPU_TIMES = {
    "halt_wait_ns": ("halt_wait_seconds", "Seconds the halted vCPU slept"),
    "halt_poll_success_ns": ("halt_poll_success_seconds", "Seconds of polling that saw the wake-up come"),
    "halt_poll_fail_ns": ("halt_poll_fail_seconds", "Seconds of polling in vain"),
}
_VM_COUNTS = {
    "remote_tlb_flush": "Flushes of all the domain's translation caches",
    "remote_tlb_flush_requests": "Requests for a flush of all the domain's translation caches",
    "mmu_shadow_zapped": "Shadow pages that were dropped",
    "mmu_flooded": "Shadow pages dropped because the guest kept writing to them",
    "mmu_recycled": "Shadow pages dropped for want of room",
    "mmu_cache_miss": "Shadow pages that had to be made",
}
_VM_PAGES = {"pages_4k": "4096", "pages_2m": "2097152", "pages_1g": "1073741824"}


def _declarations() -> tuple[Declaration, ...]:
    found: list[Declaration] = [
        Field(f"cpu.haltpoll.{word}.time", f"libvirt_domain_kvm_halt_poll_{word}_seconds_total", Kind.COUNTER,
              f"Seconds the kernel polled for halted vCPUs {text}, all vCPUs together (libvirt "
              f"cpu.haltpoll.{word}.time, nanoseconds).", NANOSECOND, since="7.6.0")
        for word, text in (("success", "and saw the wake-up come"), ("fail", "in vain"))]
    found += [Field(f"vcpu.<n>.{name}.sum", f"libvirt_domain_vcpu_kvm_{name}_total", Kind.COUNTER,
                    f"{text} (libvirt vcpu.<n>.{name}.sum, count).", label="vcpu", since=_SINCE)
              for name, text in _VCPU_COUNTS.items()]
    found += [Field(f"vcpu.<n>.{name}.sum", f"libvirt_domain_vcpu_kvm_{metric}_total", Kind.COUNTER,
                    f"{text} (libvirt vcpu.<n>.{name}.sum, nanoseconds).", NANOSECOND, "vcpu", since=_SINCE)
              for name, (metric, text) in _VCPU_TIMES.items()]
    found += [Field(f"vm.{name}.cur", "libvirt_domain_kvm_pages", Kind.GAUGE,
                    "Pages the domain's memory is mapped with on the host, by their size in bytes (libvirt "
                    "vm.pages_4k.cur, vm.pages_2m.cur, vm.pages_1g.cur, count).", fixed=(("size", size),), since=_SINCE)
              for name, size in _VM_PAGES.items()]
    found += [Field(f"vm.{name}.sum", f"libvirt_domain_kvm_{name}_total", Kind.COUNTER,
                    f"{text} (libvirt vm.{name}.sum, count).", since=_SINCE) for name, text in _VM_COUNTS.items()]
    return tuple(found)


KVM = Collector(name="kvm", help="KVM's counters of a domain and its vCPUs, those that mean something to an operator.",
                declarations=_declarations(), default=False)

_KNOWN = frozenset(field.source.replace("<n>", "") for field in KVM.fields())
_WORDS = {"sum": ("_total", Kind.COUNTER, "Counter"), "cur": ("_value", Kind.GAUGE, "Present value"),
          "max": ("_peak", Kind.GAUGE, "Peak value")}


def _rest() -> tuple[Declaration, ...]:
    found: list[Declaration] = []
    for word, (end, kind, text) in _WORDS.items():
        found.append(Field(f"kvm.<n>.{word}", f"libvirt_domain_kvm_stat{end}", kind,
                           f"{text} of KVM's under its own name and in its own unit (libvirt vm.NAME.{word} as "
                           f"kvm.<n>.{word}, number).", label="stat", label_key="kvm.<n>.name", since=_SINCE))
        found.append(Field(f"vcpu.<n>.kvm.<m>.{word}", f"libvirt_domain_vcpu_kvm_stat{end}", kind,
                           f"{text} of KVM's for the vCPU under its own name and in its own unit (libvirt "
                           f"vcpu.<n>.NAME.{word} as vcpu.<n>.kvm.<m>.{word}, number).", label="vcpu",
                           inner_label="stat", inner_label_key="vcpu.<n>.kvm.<m>.name", since=_SINCE))
    return tuple(found)


KVM_ALL = Collector(name="kvm.all", help="All of KVM's counters that the kvm collector leaves out, by KVM's own names.",
                    declarations=_rest(), default=False)


def named(stats: Mapping[str, Value]) -> dict[str, Value]:
    """The keys that ``KVM`` declares."""
    return {key: value for key, value in stats.items() if _pattern(key) in _KNOWN}


class KvmSource(GroupsSource):
    """Of a guest without KVM libvirt says that nothing polled; that is no zero, and is left out."""

    def __init__(self, inventory: Inventory) -> None:
        super().__init__(KVM.name, group_bits(GROUPS), frozenset(), named)
        self._inventory = inventory

    def read(self, session: Session, part: object) -> Iterable[Record]:
        assert isinstance(part, RunningDomain)
        definition = self._inventory.details(part.uuid, part.id)
        for record in super().read(session, part):
            if definition is not None and definition.type == "kvm":
                yield record
            elif stats := {key: value for key, value in record.stats.items() if not key.startswith("cpu.haltpoll.")}:
                yield replace(record, stats=stats)


def _pattern(key: str) -> str:
    parts = key.split(".")
    return ".".join((parts[0], "", *parts[2:])) if parts[0] == "vcpu" and len(parts) == 4 else key


def unnamed(stats: Mapping[str, Value]) -> dict[str, Value]:
    """KVM's counters that ``KVM`` does not declare, under the keys that ``KVM_ALL`` reads, in the order of names."""
    found: dict[str, Value] = {}
    numbers: dict[str, int] = {}
    for key in sorted(stats):
        parts = key.split(".")
        vcpu = parts[1] + "." if parts[0] == "vcpu" and len(parts) == 4 else ""
        if parts[-1] not in _WORDS or _pattern(key) in _KNOWN or not (vcpu or (parts[0] == "vm" and len(parts) == 3)):
            continue
        stem = f"vcpu.{vcpu}kvm" if vcpu else "kvm"
        number = numbers[stem] = numbers.get(stem, -1) + 1
        found[f"{stem}.{number}.name"] = parts[-2]
        found[f"{stem}.{number}.{parts[-1]}"] = stats[key]
    return found

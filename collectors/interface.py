"""Network interfaces, as the guest sees them, by the host's device name."""

from __future__ import annotations

from .fields import Collector, Computed, Declaration, Field, Kind, Ratio

_NAME_KEY = "net.<n>.name"
_WORDS = (("bytes", "bytes", "Bytes"), ("pkts", "packets", "Packets"), ("errs", "errors", "Errors"),
          ("drop", "drops", "Dropped packets"))
_DIRECTIONS = (("rx", "receive", "received"), ("tx", "transmit", "sent"))


def _counters() -> list[Declaration]:
    return [
        Field(f"net.<n>.{way}.{word}", f"libvirt_domain_interface_stats_{direction}_{metric}_total", Kind.COUNTER,
              f"{text} the guest {verb} (libvirt net.<n>.{way}.{word}, {'bytes' if word == 'bytes' else 'count'}).",
              1.0, "target_device", _NAME_KEY, archive=f"{direction}_{metric}")
        for way, direction, verb in _DIRECTIONS for word, metric, text in _WORDS
    ]


def _rates() -> list[Declaration]:
    return [
        Computed(f"libvirt_domain_interface_{direction}_{metric}_per_second", Ratio.PER_SECOND,
                 f"net.<n>.{way}.{word}",
                 f"{text} a second the guest {verb} (rate of libvirt net.<n>.{way}.{word}).",
                 label="target_device", label_key=_NAME_KEY)
        for way, direction, verb in _DIRECTIONS for word, metric, text in _WORDS[:2]
    ]


INTERFACE = Collector(
    name="interface",
    help="Network interface bytes, packets, errors and drops.",
    groups=("interface",),
    declarations=(*_counters(), *_rates()),
)

"""Disks: requests, bytes, times and sizes, by the guest's target name."""

from __future__ import annotations

from .fields import NANOSECOND, Collector, Computed, Field, Kind, Ratio

_NAME_KEY = "block.<n>.name"
_PREFIX = "libvirt_domain_block_stats_"
_ARCHIVE_DIRECTIONS = {"rd": "read", "wr": "write", "fl": "flush"}


def _counter(source: str, name: str, text: str, unit: str, scale: float = 1.0) -> Field:
    direction, what = source.split(".")
    word = {"bytes": "bytes", "reqs": "requests", "times": "time_ns"}[what]
    column = f"{_ARCHIVE_DIRECTIONS[direction]}_{word}"
    return Field(f"block.<n>.{source}", f"{_PREFIX}{name}_total", Kind.COUNTER,
                 f"{text} (libvirt block.<n>.{source}, {unit}).", scale, "target_device", _NAME_KEY, archive=column)


def _size(source: str, name: str, text: str) -> Field:
    return Field(f"block.<n>.{source}", f"{_PREFIX}{name}_bytes", Kind.GAUGE,
                 f"{text} (libvirt block.<n>.{source}, bytes).", 1.0, "target_device", _NAME_KEY,
                 archive=f"{source}_bytes")


def _rate(name: str, source: str, text: str) -> Computed:
    return Computed(f"libvirt_domain_block_{name}", Ratio.PER_SECOND, f"block.<n>.{source}",
                    f"{text} (rate of libvirt block.<n>.{source}).", label="target_device", label_key=_NAME_KEY)


def _latency(name: str, direction: str, text: str) -> Computed:
    times, requests = f"block.<n>.{direction}.times", f"block.<n>.{direction}.reqs"
    return Computed(f"libvirt_domain_block_{name}_latency_seconds", Ratio.PER_CHANGE, times,
                    f"{text}, absent while there are none (change of libvirt {times}, nanoseconds, / {requests}).",
                    denominator=requests, scale=NANOSECOND, label="target_device", label_key=_NAME_KEY)


BLOCK = Collector(
    name="block",
    help="Disk requests, bytes, times, flushes and sizes.",
    groups=("block",),
    declarations=(
        _counter("rd.bytes", "read_bytes", "Bytes the guest read", "bytes"),
        _counter("wr.bytes", "write_bytes", "Bytes the guest wrote", "bytes"),
        _counter("rd.reqs", "read_requests", "Read requests of the guest", "count"),
        _counter("wr.reqs", "write_requests", "Write requests of the guest", "count"),
        _counter("fl.reqs", "flush_requests", "Flush requests of the guest", "count"),
        _counter("rd.times", "read_time_seconds", "Seconds spent in reads, summed over requests", "nanoseconds",
                 NANOSECOND),
        _counter("wr.times", "write_time_seconds", "Seconds spent in writes, summed over requests", "nanoseconds",
                 NANOSECOND),
        _counter("fl.times", "flush_time_seconds", "Seconds spent in flushes, summed over requests", "nanoseconds",
                 NANOSECOND),
        _size("capacity", "capacity", "Size of the disk as the guest sees it"),
        _size("allocation", "allocation", "Highest offset written since the domain started"),
        _size("physical", "physicalsize", "Bytes the image takes on the host's storage"),
        _size("threshold", "threshold", "Write offset at which libvirt sends a block threshold event"),
        _rate("read_bytes_per_second", "rd.bytes", "Bytes a second the guest reads"),
        _rate("write_bytes_per_second", "wr.bytes", "Bytes a second the guest writes"),
        _rate("reads_per_second", "rd.reqs", "Read requests a second"),
        _rate("writes_per_second", "wr.reqs", "Write requests a second"),
        _rate("flushes_per_second", "fl.reqs", "Flush requests a second"),
        _latency("read", "rd", "Mean seconds a read took"),
        _latency("write", "wr", "Mean seconds a write took"),
        _latency("flush", "fl", "Mean seconds a flush took"),
    ),
)

"""Disks: requests, bytes, times and sizes, by the guest's target name."""

from __future__ import annotations

from .fields import NANOSECOND, Collector, Computed, Declaration, Field, Kind, Ratio

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


_OPERATIONS = (("rd", "read", "read"), ("wr", "write", "write"), ("flush", "flush", "flush"),
               ("zone_append", "zone_append", "zone_append"))
_GROUP = "block.<n>.timed_group.<m>"
_WORDS = {"min": "Least", "max": "Most", "avg": "Mean"}
_LIMITS = {
    "request_alignment": "Bytes to which requests must be aligned",
    "discard_max": "Bytes that one discard may cover at most",
    "discard_alignment": "Bytes to which discards should be aligned",
    "write_zeroes_max": "Bytes that one write of zeroes may cover at most",
    "write_zeroes_alignment": "Bytes to which writes of zeroes should be aligned",
    "transfer_optimal": "Bytes at which a transfer works best",
    "transfer_max": "Bytes that one transfer may have at most",
    "transfer_hw_max": "Bytes that one transfer may have at most for the host's device",
    "memory_alignment_minimal": "Bytes to which buffers must be aligned",
    "memory_alignment_optimal": "Bytes to which buffers should be aligned",
}


def _request_limits() -> list[Declaration]:
    """What QEMU asks of requests to the disk; the widely used family's ``limit`` names are those of <iotune>."""
    sizes: list[Declaration] = [
        Field(f"block.<n>.limits.{name}", f"{_PREFIX}request_{name}_bytes", Kind.GAUGE,
              f"{text} (libvirt block.<n>.limits.{name}, bytes).", 1.0, "target_device", _NAME_KEY, since="11.10.0",
              zero_is_unknown=True)
        for name, text in _LIMITS.items()]
    return sizes + [
        Field(f"block.<n>.limits.{name}", f"{_PREFIX}request_{name}", Kind.GAUGE,
              f"{text} (libvirt block.<n>.limits.{name}, count).", 1.0, "target_device", _NAME_KEY, since="11.10.0",
              zero_is_unknown=True)
        for name, text in (("iov_max", "Buffers that one request may have at most"),
                           ("iov_hw_max", "Buffers that one request may have at most for the host's device"))]


def _timed_groups() -> list[Declaration]:
    """Latencies of the last interval, where the disk's definition asks for such intervals."""
    found: list[Declaration] = []
    for word in ("min", "max", "avg"):
        for source, operation, _ in _OPERATIONS:
            found.append(Field(
                f"{_GROUP}.{source}_latency_{word}", f"{_PREFIX}interval_{word}_latency_seconds", Kind.GAUGE,
                f"{_WORDS[word]} seconds a request took within the last interval, by its length in seconds (libvirt "
                f"{_GROUP}.OPERATION_latency_{word}, nanoseconds).", NANOSECOND, "target_device", _NAME_KEY,
                (("operation", operation),), since="11.10.0", inner_label="interval",
                inner_label_key=f"{_GROUP}.interval"))
    for source, operation, _ in _OPERATIONS:
        if operation != "flush":
            found.append(Field(
                f"{_GROUP}.{source}_queue_depth_avg", f"{_PREFIX}interval_queue_depth", Kind.GAUGE,
                "Mean number of requests in progress within the last interval, by its length in seconds (libvirt "
                f"{_GROUP}.OPERATION_queue_depth_avg, count).", 1.0, "target_device", _NAME_KEY,
                (("operation", operation),), since="11.10.0", inner_label="interval",
                inner_label_key=f"{_GROUP}.interval"))
    return found


def _histograms() -> list[Declaration]:
    source = "block.<n>.latency_histogram.{}.bin.<m>"
    return [Field(source.format(operation) + ".value", "libvirt_domain_block_request_duration_seconds", Kind.HISTOGRAM,
                  "Seconds requests took, as far as the disk's definition asks for it; without a sum, since libvirt "
                  "gives none, and the bucket +Inf counts all (libvirt block.<n>.latency_histogram.OPERATION.bin.<m>"
                  ".value, count, by .start, nanoseconds).", NANOSECOND, "target_device", _NAME_KEY,
                  (("operation", operation),), since="12.1.0", inner_label="le",
                  inner_label_key=source.format(operation) + ".start")
            for _, _, operation in _OPERATIONS]


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
        *_request_limits(),
        *_timed_groups(),
        *_histograms(),
    ),
)

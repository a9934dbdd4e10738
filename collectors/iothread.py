"""I/O threads: how many there are and how they poll.  libvirt gives settings only, no usage."""

from __future__ import annotations

from .fields import NANOSECOND, Collector, Field, Kind

_SINCE = "4.10.0"
GROUPS = ("iothread",)

IOTHREAD = Collector(
    name="iothread",
    help="I/O threads and their polling.",
    declarations=(
        Field("iothread.count", "libvirt_domain_iothreads", Kind.GAUGE,
              "Number of the domain's I/O threads (libvirt iothread.count, count).", since=_SINCE),
        Field("iothread.<n>.poll-max-ns", "libvirt_domain_iothread_poll_max_seconds", Kind.GAUGE,
              "Longest time the I/O thread polls before it sleeps (libvirt iothread.<n>.poll-max-ns, nanoseconds).",
              NANOSECOND, "iothread", since=_SINCE),
        Field("iothread.<n>.poll-grow", "libvirt_domain_iothread_poll_grow_factor", Kind.GAUGE,
              "Factor by which the polling time grows, 0 for QEMU's default (libvirt iothread.<n>.poll-grow, number).",
              1.0, "iothread", since=_SINCE),
        Field("iothread.<n>.poll-shrink", "libvirt_domain_iothread_poll_shrink_divisor", Kind.GAUGE,
              "Divisor by which the polling time shrinks, 0 for back to nothing at once (libvirt "
              "iothread.<n>.poll-shrink, number).", 1.0, "iothread", since=_SINCE),
        Field("iothread.<n>.poll-weight", "libvirt_domain_iothread_poll_weight", Kind.GAUGE,
              "Weight of the newest event in the polling time (libvirt iothread.<n>.poll-weight, number).",
              1.0, "iothread", since="12.7.0"),
    ),
    default=False,
)

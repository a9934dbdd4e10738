"""The Records of one running domain: libvirt's answer, the kernel's figures, what is carried, what the XML says."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Iterable, Iterator

from .cadence import Cadence
from .connection import Session
from .inventory import Inventory
from .kernel import KernelSource, KernelSourceError, definition_stats
from .snapshot import Record, Subject, Value

log = logging.getLogger(__name__)

Key = tuple[str, int]
_SIZES = ("balloon.current", "balloon.maximum")
_MOST_DISKS = 256
_MOST_READINGS = 3
"""Times that a domain's XML is read again because it speaks of another number of vCPUs."""


class DomainRecords:
    """Puts a domain's sources together, each with its own time.  The sampler's thread, but for ``find``.

    ``kernel`` is None where the host's files are not ours to read (another host's libvirt, sampling.kernel off).
    """

    def __init__(self, groups: Iterable[str], inventory: Inventory, kernel: KernelSource | None) -> None:
        self._inventory = inventory
        self._kernel = kernel
        self._cadence = Cadence(groups, kernel, inventory.details)
        self._images: dict[Key, tuple[Value | None, ...]] = {}
        self._failures: dict[Key, int] = {}  # in a row, of reading the kernel's files
        self._vcpus: dict[Key, tuple[int, int]] = {}  # a number that the XML lacks, and how often it was read again

    @property
    def failing(self) -> bool:
        """Whether the files of a domain that runs cannot be read; a process that has just ended is no failure."""
        return any(count > 1 for count in self._failures.values())

    def stale(self, running: Iterable[Key], stopped: Iterable[Key] = ()) -> bool:
        """Whether ``find`` has something to do."""
        kernel = self._kernel
        keys = list(running)
        return self._inventory.stale([*keys, *stopped]) or (
            kernel is not None and any(not kernel.decided(key) for key in keys))

    def find(self, session: Session, running: Iterable[Key], stopped: Iterable[Key] = ()) -> None:
        """Read what is new of the domains: processes and XML of those that run, XML of the others.

        In a lane: both can take long.
        """
        keys = list(running)
        if self._kernel is not None:
            self._kernel.find(keys)
        self._inventory.refresh(session, [*keys, *stopped])

    def forget(self, running: Iterable[Key]) -> None:
        """Drop what was kept for domains that no longer run."""
        keys = list(running)
        self._cadence.forget(keys)
        kept = set(keys)
        self._images = {key: images for key, images in self._images.items() if key in kept}
        self._failures = {key: count for key, count in self._failures.items() if key in kept}
        self._vcpus = {key: vcpus for key, vcpus in self._vcpus.items() if key in kept}
        if self._kernel is not None:
            self._kernel.forget(keys)

    def mask(self, key: Key) -> int:
        """The groups to ask libvirt for, as bits."""
        return self._cadence.mask(key, time.monotonic())

    def records(self, subject: Subject, key: Key, stats: dict[str, Value], sampled_at_s: float,
                complete: bool) -> Iterator[Record]:
        """Records of a running domain of whose bulk answer (or roster entry) these are the ``stats``."""
        self._follow_images(key, stats)
        sizes = {name: stats[name] for name in _SIZES if name in stats}
        self._cadence.take(key, stats, sampled_at_s, complete)
        if self._kernel is not None and self._kernel.serves(key):
            yield from self._from_kernel(subject, key)
        else:
            self._follow_vcpus(key, stats)
            definition = self._inventory.details(*key)
            stats.update(definition_stats(definition) if definition is not None else sizes)
        yield Record(subject, "bulk", stats, sampled_at_s)
        carried = self._cadence.carried(key, sampled_at_s)
        if carried is not None:
            yield Record(subject, "balloon", carried.stats, carried.sampled_at_s)
        constants = self._inventory.constants(*key)
        if constants:
            yield Record(subject, "inventory", {}, sampled_at_s, constants)

    def _follow_images(self, key: Key, stats: dict[str, Value]) -> None:
        """Have the XML read again where a disk lies elsewhere than at the last sample.

        libvirt sends no event for an external snapshot; where a disk lies it tells at each sample.
        """
        count = stats.get("block.count")
        if isinstance(count, int) and count:
            images = tuple([stats.get(name) for name in _image_keys(min(count, _MOST_DISKS))])
            if self._images.setdefault(key, images) != images:
                self._images[key] = images
                self._inventory.invalidate(key[0])

    def _follow_vcpus(self, key: Key, stats: dict[str, Value]) -> None:
        """Have the XML read again where it speaks of other vCPUs than are there: no event tells of one more.

        A few times, since libvirt notes an unplugged one a little after its thread has ended.
        """
        count, definition = stats.get("vcpu.current"), self._inventory.details(*key)
        if not isinstance(count, int) or definition is None or definition.vcpus_current in (None, count):
            self._vcpus.pop(key, None)
            return
        before, readings = self._vcpus.get(key, (count, 0))
        readings = readings + 1 if before == count else 1
        self._vcpus[key] = count, readings
        if readings <= _MOST_READINGS:
            self._inventory.invalidate(key[0])

    def _from_kernel(self, subject: Subject, key: Key) -> Iterator[Record]:
        assert self._kernel is not None
        read_at_s = time.monotonic()
        try:
            stats = self._kernel.stats(key, self._inventory.details(*key))
        except KernelSourceError as error:  # mostly the process ended under us: the next roster will not list it
            self._failed(key, subject.name, error)
            return
        count = self._failures.pop(key, 0)
        if count > 1:
            log.info("domain %.200s: its process can be read again after %d failures", subject.name, count)
        self._follow_vcpus(key, stats)
        yield Record(subject, "kernel", stats, read_at_s)

    def _failed(self, key: Key, name: str, error: KernelSourceError) -> None:
        count = self._failures[key] = self._failures.get(key, 0) + 1
        if count in (2, 10, 100) or count % 1000 == 0:
            log.warning("domain %.200s: %s (failure %d); its CPU, vCPU and interface series are absent, and its RSS",
                        name, error, count)


@functools.lru_cache(_MOST_DISKS)
def _image_keys(count: int) -> tuple[str, ...]:
    return tuple(f"block.{number}.path" for number in range(count))

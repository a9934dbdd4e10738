"""The backing chain of each disk: how many images it has, and their sizes (the bulk call's BACKING flag)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from .bulk import GROUP_BITS
from .connection import Session
from .domain_groups import domain_subject, read_whole
from .domain_lists import unless_gone
from .domain_xml import DomainXMLError, parse
from .fields import Collector, Declaration, Field, Kind
from .inventory import Inventory
from .periodic import RunningDomain, Scope
from .snapshot import Record, Value

_BACKING = 1 << 30
_NAME_KEY = "backing.<n>.name"
_SIZES = {"allocation": ("allocation", "Highest offset written to the image since the domain started"),
          "capacity": ("capacity", "Size of the image as its user sees it"),
          "physical": ("physicalsize", "Bytes the image takes on the host's storage")}


def _size(word: str, name: str, text: str) -> Declaration:
    return Field(f"backing.<n>.<m>.{word}", f"libvirt_domain_block_backing_{name}_bytes", Kind.GAUGE,
                 f"{text}, by its place in the chain, 0 for the one on top (libvirt block.<n>.{word} with BACKING, as "
                 f"backing.<n>.<m>.{word}, bytes).", 1.0, "target_device", _NAME_KEY, inner_label="level")


BACKING = Collector(
    name="backing",
    help="The backing chain of each disk: its length and each image's sizes.",
    declarations=(
        Field("backing.<n>.images", "libvirt_domain_block_backing_images", Kind.GAUGE,
              "Number of images in the disk's chain, 1 without a backing image (libvirt block.<n>.name with BACKING, "
              "as backing.<n>.images, count).", 1.0, "target_device", _NAME_KEY),
        *(_size(word, name, text) for word, (name, text) in _SIZES.items())),
    default=False,
)


class BackingSource:
    """Asks the bulk call for block with all images, domain by domain."""

    collector = BACKING.name
    period_s = 60.0
    deadline_s = 10.0

    def __init__(self, _inventory: Inventory) -> None:
        pass

    def parts(self, session: Session, scope: Scope) -> Sequence[RunningDomain]:
        return scope.healthy

    def read(self, session: Session, part: object) -> Iterable[Record]:
        assert isinstance(part, RunningDomain)
        images = _images(session, part.uuid)
        answer = read_whole(session, part.uuid, GROUP_BITS["block"], _BACKING)
        for domain in answer.domains:
            found = chains(domain.stats, images)
            if found and domain.id == part.id:
                yield Record(domain_subject(part), self.collector, found, answer.sampled_at_s)


def _images(session: Session, uuid: str) -> dict[str, tuple[int, ...]]:
    """The numbers of each disk's own images; read anew, since no event tells that a copy has begun."""
    texts = [unless_gone(partial(domain.XMLDesc, 0)) for domain in session.domains((uuid,))]
    try:
        return {disk.target_device: disk.images for text in texts if text is not None for disk in parse(text).disks}
    except DomainXMLError:
        return {}


def chains(stats: Mapping[str, Value], images: Mapping[str, tuple[int, ...]]) -> dict[str, Value]:
    """The keys that BACKING reads, of libvirt's: entries of one name are one chain, the image on top first.

    ``images`` are the numbers of those that belong to the chain, by the disk's name: libvirt gives the target of a
    copy, the scratch file of a backup and a data store under the same name.
    """
    found: dict[str, Value] = {}
    for place, (name, entries) in enumerate(_entries(stats).items()):
        own = images.get(name, ())
        if stats.get(f"block.{entries[0]}.backingIndex") in own:  # else the XML is of another moment
            entries = [number for number in entries if stats.get(f"block.{number}.backingIndex") in own]
        found |= {f"backing.{place}.name": name, f"backing.{place}.images": len(entries)}
        found |= {f"backing.{place}.{level}.{word}": stats[f"block.{number}.{word}"]
                  for level, number in enumerate(entries) for word in _SIZES if f"block.{number}.{word}" in stats}
    return found


def _entries(stats: Mapping[str, Value]) -> dict[str, list[int]]:
    """The numbers of libvirt's entries by their name."""
    found: dict[str, list[int]] = {}
    for number in itertools.count():
        name = stats.get(f"block.{number}.name")
        if name is None:
            return found
        found.setdefault(str(name), []).append(number)
    return found

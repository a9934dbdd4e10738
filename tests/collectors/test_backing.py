"""Tests of the backing chain's keys; the order of libvirt's entries is as measured: vda, vda's base, vdb."""

from __future__ import annotations

from collectors.backing import chains
from collectors.domain_xml import parse
from collectors.snapshot import Value


def test_entries_of_one_name_are_one_chain() -> None:
    assert chains({"block.count": 3, "block.0.name": "vda", "block.0.capacity": 10, "block.0.backingIndex": 1,
                   "block.1.name": "vda", "block.1.capacity": 8, "block.2.name": "vdb", "block.2.physical": 5}, {}) == {
        "backing.0.name": "vda", "backing.0.images": 2, "backing.0.0.capacity": 10, "backing.0.1.capacity": 8,
        "backing.1.name": "vdb", "backing.1.images": 1, "backing.1.0.physical": 5}
    assert chains({"block.count": 0}, {}) == {}


def test_the_target_of_a_copy_and_a_backups_scratch_file_are_no_part_of_the_chain() -> None:
    stats: dict[str, Value] = {}
    for number, (name, index) in enumerate((("vda", 3), ("vda", 1), ("vda", 7), ("vdb", 2), ("vdb", 9))):
        stats |= {f"block.{number}.{word}": value for word, value in
                  (("name", name), ("backingIndex", index), ("capacity", index))}
    assert chains(stats, {"vda": (3, 1), "vdb": (2,)}) == {
        "backing.0.name": "vda", "backing.0.images": 2, "backing.0.0.capacity": 3, "backing.0.1.capacity": 1,
        "backing.1.name": "vdb", "backing.1.images": 1, "backing.1.0.capacity": 2}
    # The XML of another moment, before a snapshot say: nothing is left out.
    assert chains(stats, {"vda": (1,)})["backing.0.images"] == 3


def test_the_numbers_of_a_chain_s_images() -> None:
    """As libvirt 9.0 writes a disk with one image below it and a copy under way."""
    xml = ("<domain id='1'><devices><disk type='file' device='disk'><source file='/a' index='3'/>"
           "<backingStore type='file'><format type='raw'/><source file='/b' index='1'/><backingStore/></backingStore>"
           "<mirror type='file' job='copy'><source file='/c' index='7'/><backingStore/></mirror>"
           "<target dev='vda'/></disk><disk><source file='/d'/><target dev='vdb'/></disk></devices></domain>")
    assert [disk.images for disk in parse(xml).disks] == [(3, 1), ()]

"""Tests of the backing chain's keys; the order of libvirt's entries is as measured: vda, vda's base, vdb."""

from __future__ import annotations

from collectors.backing import chains


def test_entries_of_one_name_are_one_chain() -> None:
    assert chains({"block.count": 3, "block.0.name": "vda", "block.0.capacity": 10, "block.0.backingIndex": 1,
                   "block.1.name": "vda", "block.1.capacity": 8, "block.2.name": "vdb", "block.2.physical": 5}) == {
        "backing.0.name": "vda", "backing.0.images": 2, "backing.0.0.capacity": 10, "backing.0.1.capacity": 8,
        "backing.1.name": "vdb", "backing.1.images": 1, "backing.1.0.physical": 5}
    assert chains({"block.count": 0}) == {}

"""Node devices of libvirt's test driver on a host whose kernel files are made for it: what may be taken, what not."""

from __future__ import annotations

import os

import pytest

from exporter.control.connection import Session
from exporter.control.errors import (
    ControlError,
    InvalidError,
    NotFoundError,
    RefusedError,
    UnconfirmedError,
    UnsupportedError,
)
from exporter.control.executor import Actor, Executor, Request
from exporter.control.folders import Folders
from exporter.control.host_devices import HostDevices
from exporter.control.node_device_xml import parse_pci_address
from exporter.control.node_devices import Detach, List, Reattach, Reset, Show, Tree, find_device
from exporter.control.operation import Call, Deadline
from exporter.control.request_parameters import parse_parameters

# Slot: driver, IOMMU group, class.
SLOTS = {
    1: ("pcieport", 1, "0x060400"),  # a bridge, in one group with the disk behind it
    2: ("nvme", 1, "0x010802"),  # the root file system
    3: ("e1000e", 3, "0x020000"),  # lan0, default route
    4: ("e1000e", 4, "0x020000"),  # lan1, free
    5: ("igb", 5, "0x020000"),  # lan2, port of a bridge; shares its group with 6
    6: ("igb", 5, "0x020000"),  # lan3, free
    7: ("vfio-pci", 7, "0x020000"),  # detached already
    8: ("ahci", 8, "0x010601"),  # sda under LVM, sdb swap, sdc unused
    9: ("i915", 9, "0x030000"),  # the display
    10: ("ixgbe", 10, "0x020000"),  # virtual functions
    11: ("vfio-pci", 11, "0x030000"),  # a running guest has it
    12: ("e1000e", None, "0x020000"),  # no IOMMU
    13: ("xhci_hcd", 13, "0x0c0330"),  # shares with 14, which is free, too
    14: ("snd_hda_intel", 13, "0x040300"),
    15: (None, 15, "0x020000"),  # no driver
}
NETS = {"lan0": 3, "lan1": 4, "lan2": 5, "lan3": 6}
DISKS = {"nvme0n1": 2, "nvme0n1p1": 2, "sda": 8, "sdb": 8, "sdc": 8}


def device(slot):
    return f"""<device><name>pci_0000_00_{slot:02x}_0</name><path>/sys/devices/pci0000:00/0000:00:{slot:02x}.0</path>
<parent>computer</parent><capability type='pci'><class>{SLOTS[slot][2]}</class><domain>0</domain><bus>0</bus>
<slot>{slot}</slot><function>0</function><product id='0x10d3'>82574L</product><vendor id='0x8086'>Intel</vendor>
</capability></device>"""


def nested(name, slot):
    return f"""<device><name>net_{name}</name><path>/sys/class/net/{name}</path>
<parent>pci_0000_00_{slot:02x}_0</parent>
<capability type='net'><interface>{name}</interface><address>52:54:00:00:00:{slot:02x}</address>
<link speed='4294967295' state='up'/><capability type='80203'/></capability></device>"""


GUEST = """<domain type='test'><name>gamer</name><memory>8192</memory><os><type>hvm</type></os><devices>
<hostdev mode='subsystem' type='pci' managed='yes'><source>
<address domain='0x0000' bus='0x00' slot='0x0b' function='0x0'/></source></hostdev></devices></domain>"""
NODE = f"""<node>{''.join(device(slot) for slot in SLOTS)}{''.join(nested(*one) for one in NETS.items())}
<device><name>computer</name><capability type='system'><hardware>
<uuid>6695eb01-f6a4-8304-79aa-97f2502e193f</uuid></hardware><firmware/></capability></device>{GUEST}</node>"""


def link(place, target):
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(os.path.relpath(target, place.parent))


def write(place, text=""):
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)


@pytest.fixture
def root(tmp_path):
    """The kernel's files, as far as they are read: sysfs(5), proc(5)."""
    root = tmp_path / "root"
    for slot, (driver, group, kind) in SLOTS.items():
        address = f"0000:00:{slot:02x}.0"
        folder = root / "sys/devices/pci0000:00" / address
        write(folder / "class", kind + "\n")
        link(root / "sys/bus/pci/devices" / address, folder)
        if driver:
            (root / "sys/bus/pci/drivers" / driver).mkdir(parents=True, exist_ok=True)
            link(folder / "driver", root / "sys/bus/pci/drivers" / driver)
        if group is not None:
            link(root / f"sys/kernel/iommu_groups/{group}/devices" / address, folder)
            link(folder / "iommu_group", root / f"sys/kernel/iommu_groups/{group}")
    for kind, names in (("net", NETS), ("block", DISKS)):
        for number, (name, slot) in enumerate(names.items()):
            folder = root / f"sys/devices/pci0000:00/0000:00:{slot:02x}.0" / kind / name
            write(folder / "dev", f"8:{number}\n")
            link(root / f"sys/class/{kind}" / name, folder)
    write(root / "sys/devices/pci0000:00/0000:00:02.0/block/nvme0n1p1/partition", "1\n")
    write(root / "sys/devices/virtual/block/dm-0/dev", "253:0\n")
    link(root / "sys/class/block/dm-0", root / "sys/devices/virtual/block/dm-0")
    link(root / "sys/devices/pci0000:00/0000:00:08.0/block/sda/holders/dm-0", root / "sys/devices/virtual/block/dm-0")
    write(root / "sys/devices/pci0000:00/0000:00:05.0/net/lan2/upper_br0")
    write(root / "sys/devices/pci0000:00/0000:00:09.0/boot_vga", "1\n")
    write(root / "sys/devices/pci0000:00/0000:00:0a.0/sriov_numvfs", "4\n")
    write(root / "proc/self/mountinfo",
          "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p1 rw\n"
          "23 22 253:0 / /srv rw,relatime shared:2 - xfs /dev/mapper/vg-srv rw\n")  # fmt: skip
    write(root / "proc/swaps", "Filename Type Size Used Priority\n/dev/sdb partition 1 0 -2\n")
    write(root / "proc/net/route",
          "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n"
          "lan0 00000000 010200C0 0003 0 0 0 00000000 0 0 0\n")  # fmt: skip
    write(root / "proc/net/if_inet6", "20010db8000000000000000000000005 02 40 00 80 lan0\n")
    return root


@pytest.fixture
def run(tmp_path, root):
    (tmp_path / "node.xml").write_text(NODE)
    session = Session(f"test://{tmp_path}/node.xml")
    executor = Executor(session, Folders(tmp_path / "control"))
    host = HostDevices(root)
    operations = {made.verb: made for made in (kind(host) for kind in (List, Tree, Show, Detach, Reset, Reattach))}

    def run(verb, reference=None, dry_run=False, confirmed=None, **document):
        operation = operations[verb]
        request = Request(Actor("tester", "test"), dry_run=dry_run, confirmed=confirmed)
        return executor.run(operation, reference, parse_parameters(operation, document), request)

    run.executor = executor
    yield run
    session.close()


def test_listed_by_capability_and_as_a_tree(run):
    assert run("list").details["devices"] == len(SLOTS) + len(NETS) + 1
    rows = run("list", capability="net").details["rows"]
    assert [row["interface"] for row in rows] == ["lan0", "lan1", "lan2", "lan3"]
    assert rows[0] == {"name": "net_lan0", "capability": "net", "parent": "pci_0000_00_03_0", "interface": "lan0",
                       "mac": "52:54:00:00:00:03", "link": "up"}  # fmt: skip
    assert run("list", capability="storage").details["rows"] == []
    with pytest.raises(InvalidError, match="capability 'disk'"):
        run("list", capability="disk")
    tree = run("tree").details["rows"]
    assert len(tree) == len(SLOTS) + len(NETS) + 1
    assert [(row["device"], row["depth"]) for row in tree if "00_03_0" in row["device"] or "lan0" in row["device"]] == [
        ("  pci_0000_00_03_0", 1), ("    net_lan0", 2)
    ]  # fmt: skip
    assert tree[0]["device"] == "computer"


@pytest.mark.parametrize("reference", ["pci_0000_00_05_0", "0000:00:05.0", "00:05.0"])
def test_shown_by_name_and_address(run, reference):
    shown = run("show", reference).details
    assert (shown["name"], shown["address"], shown["driver"]) == ("pci_0000_00_05_0", "0000:00:05.0", "igb")
    assert (shown["iommu_group"], shown["iommu_group_others"]) == (5, ["0000:00:06.0"])
    assert shown["used_by_host"] == ["interface lan2 is part of br0"]
    assert "used_by_guests" not in shown
    assert "<product id='0x10d3'>" in shown["xml"]


def test_shown_by_interface_and_not_found(run):
    assert run("show", "lan1").details["parent"] == "pci_0000_00_04_0"
    assert run("show", "0000:00:0b.0").details["used_by_guests"] == ["gamer"]
    with pytest.raises(NotFoundError, match="the nearest: pci_0000_00_0"):
        run("show", "pci_0000_00_00_9")
    for nothing in ("", "0000:00:1f.7", "x" * 100_000):
        with pytest.raises(NotFoundError):
            run("show", nothing)


REFUSED = {
    "0000:00:01.0": "is a bridge of the host",
    "0000:00:02.0": "uses PCI device 0000:00:02.0: disk nvme0n1p1 is mounted on /",
    "0000:00:03.0": "interface lan0 has the address 2001:db8::5; interface lan0 carries the host's default route",
    "0000:00:05.0": "interface lan2 is part of br0",
    "0000:00:08.0": r"disk sda is mounted on /srv \(by dm-0\); disk sda is held by dm-0; disk sdb is swap space",
    "0000:00:09.0": "it is the host's own display",
    "0000:00:0a.0": "it has 4 virtual functions",
    "0000:00:0b.0": "belongs to the running guest gamer",
}


@pytest.mark.parametrize("verb", ["detach", "reset"])
@pytest.mark.parametrize("address", REFUSED)
def test_what_the_host_or_a_guest_uses_is_refused_by_name(run, verb, address):
    if (verb, address) == ("detach", "0000:00:0b.0"):  # it is detached already
        assert run("detach", address).changed is False
        return
    for dry_run in (True, False):
        with pytest.raises(RefusedError, match=REFUSED[address]):
            run(verb, address, dry_run=dry_run, confirmed="pci_" + address.replace(":", "_").replace(".", "_"))
    assert {record["event"] for record in run.executor.trail.records()} == {"refused"}


def test_a_shared_group_is_refused_and_taken_as_a_whole(run):
    with pytest.raises(RefusedError, match=r"shares its IOMMU group 13 with 0000:00:0e\.0 \(snd_hda_intel\)"):
        run("detach", "0000:00:0d.0", dry_run=True)
    plan = run("detach", "0000:00:0d.0", dry_run=True, with_group=True).plan
    assert plan.steps == ["take 0000:00:0d.0 from xhci_hcd and give it to vfio-pci",
                          "take 0000:00:0e.0 from snd_hda_intel and give it to vfio-pci"]  # fmt: skip
    # What the host uses stays, as a member of the group too.
    with pytest.raises(RefusedError, match="interface lan2 is part of br0"):
        run("detach", "0000:00:06.0", dry_run=True, with_group=True)


def test_one_of_a_group_that_libvirt_does_not_list_is_told_before_any_is_taken(run, root):
    address = "0000:00:1e.0"
    folder = root / "sys/devices/pci0000:00" / address
    write(folder / "class", "0x010802\n")
    link(root / "sys/bus/pci/devices" / address, folder)
    link(folder / "driver", root / "sys/bus/pci/drivers/nvme")
    link(folder / "iommu_group", root / "sys/kernel/iommu_groups/13")
    link(root / "sys/kernel/iommu_groups/13/devices" / address, folder)
    with pytest.raises(ControlError, match=f"libvirt does not list PCI device {address}, .*; nothing was taken"):
        run("detach", "0000:00:0d.0", with_group=True, confirmed="pci_0000_00_0d_0")


def test_one_that_had_no_driver_is_given_back_without_one(run, root):
    session = run.executor.session
    bare, held = (find_device(session, address) for address in ("0000:00:0f.0", "0000:00:07.0"))
    detach, call = Detach(HostDevices(root)), Call(session, bare, Folders(root), Deadline(0.1))
    assert detach._given_back(call, bare.handle, "0000:00:0f.0", None)
    # Its driver is still to take it; it is still the guests'.
    assert not detach._given_back(call, bare.handle, "0000:00:0f.0", "e1000e")
    assert not detach._given_back(call, held.handle, "0000:00:07.0", None)


def test_a_free_one_is_taken_with_what_the_host_loses(run):
    plan = run("detach", "0000:00:04.0", dry_run=True).plan
    assert (plan.steps, plan.lost) == (
        ["take 0000:00:04.0 from e1000e and give it to vfio-pci"], ["the host's interface lan1"]
    )  # fmt: skip
    with pytest.raises(UnconfirmedError):
        run("detach", "0000:00:04.0")
    with pytest.raises(InvalidError, match="is no PCI device; its parent is pci_0000_00_04_0"):
        run("detach", "lan1", dry_run=True)
    # The test driver cannot: libvirt's own answer comes back, and nothing is claimed.
    with pytest.raises(UnsupportedError, match="virNodeDeviceDetachFlags"):
        run("detach", "0000:00:04.0", confirmed="pci_0000_00_04_0")
    assert [record["event"] for record in run.executor.trail.records()][-2:] == ["begin", "end"]


def test_without_an_iommu_nothing_is_taken(run):
    with pytest.raises(UnsupportedError, match=r"0000:00:0c\.0 has no IOMMU group.*intel_iommu=on"):
        run("detach", "0000:00:0c.0", dry_run=True)


def test_what_is_there_already_is_unchanged(run):
    assert run("detach", "0000:00:07.0").changed is False
    assert run("reattach", "0000:00:04.0").changed is False
    assert run("reattach", "0000:00:0f.0").changed is False
    with pytest.raises(UnsupportedError, match="virNodeDeviceReAttach"):
        run("reattach", "0000:00:07.0")
    with pytest.raises(RefusedError, match="belongs to the running guest gamer"):
        run("reattach", "0000:00:0b.0")


def test_only_what_no_driver_of_the_host_has_is_reset(run):
    with pytest.raises(RefusedError, match="is with the host's driver e1000e"):
        run("reset", "0000:00:04.0")
    for address in ("0000:00:07.0", "0000:00:0f.0"):
        assert run("reset", address, dry_run=True).plan.steps == [f"reset {address}"]
        with pytest.raises(UnsupportedError, match="virNodeDeviceReset"):
            run("reset", address)


@pytest.mark.parametrize(
    ("text", "address"),
    [("0000:00:03.0", "0000:00:03.0"), ("00:1F.2", "0000:00:1f.2"), ("10000:01:00.0", "10000:01:00.0"),
     ("0000:00:03.8", None), ("00:03", None), ("", None), ("0000:00:03.0\n", "0000:00:03.0")],
)  # fmt: skip
def test_pci_addresses(text, address):
    assert parse_pci_address(text) == address

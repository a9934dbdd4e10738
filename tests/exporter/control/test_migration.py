"""Destinations, what a migration can be asked for, and which disks it would leave behind."""

from __future__ import annotations

import json
import socket
import threading
from types import SimpleNamespace

import libvirt
import pytest
from pydantic import ValidationError

from exporter.config import ControlSettings
from exporter.control import destinations as places
from exporter.control import migration, migration_job
from exporter.control.connection import Session
from exporter.control.destinations import Destination, destination_named, destinations
from exporter.control.domain import find_domain
from exporter.control.errors import NotFoundError, RefusedError, UnreachableError
from exporter.control.folders import Folders
from exporter.control.migration_disks import check_disks, copied_targets, guest_disks
from exporter.control.migration_parameters import MigrateParameters, migration_flags, typed_parameters
from exporter.control.migration_progress import job_facts, progress_of
from exporter.control.migration_sides import Sides
from exporter.control.operation import Call, Deadline, NoParameters
from exporter.control.shared_storage import file_system_of, shared_with_others

KVM2 = "kvm2=qemu+tls://kvm2.example.org/system tcp://192.0.2.7"


@pytest.mark.parametrize("text", [KVM2, "a=qemu+ssh://root@a/system", "b=qemu+unix:///system?socket=/s unix:///x"])
def test_a_destination_from_its_setting(text):
    (kept,) = ControlSettings(migration_destination=text).migration_destination
    (place,) = destinations([kept])
    assert f"{place.name}={place.uri}" + (f" {place.stream_uri}" if place.stream_uri else "") == text


@pytest.mark.parametrize(
    ("value", "cause"),
    [
        ("kvm2", "is no destination; write it like"),
        ("=qemu:///system", "is no destination"),
        ("a b=qemu:///system", "is no destination"),
        ("kvm2=qume+tls://h/system", "the nearest is 'qemu'"),
        ("kvm2=qemu+tls://h/system exec:rm", "malformed way for the memory"),
        ("kvm2=qemu+tls://h/system tcp://h; x", "is no destination"),
        (["k=qemu+tls://h/system", "k=qemu+tls://i/system"], "names k twice"),
        (7, "neither text nor a list"),
    ],
)
def test_a_malformed_destination_is_told(value, cause):
    with pytest.raises(ValidationError, match=cause):
        ControlSettings(migration_destination=value)


def test_only_a_name_is_a_destination():
    known = destinations([KVM2])
    assert destination_named(known, "kvm2").stream_uri == "tcp://192.0.2.7"
    for name in ("qemu+tls://kvm2.example.org/system", KVM2, "kvm", ""):
        with pytest.raises(NotFoundError) as caught:
            destination_named(known, name)
        assert "example.org" not in caught.value.cause.replace(repr(name), "")
    with pytest.raises(NotFoundError, match=r"control\.migration_destination"):
        destination_named((), "kvm2")


@pytest.mark.parametrize(
    ("uri", "transport", "protected"),
    [("qemu+tls://h/system", "tls", True), ("qemu://h/system", "tls", True), ("qemu+tcp://h/system", "tcp", False),
     ("qemu+ssh://h/system", "ssh", True), ("qemu:///system", "unix", True)],
)  # fmt: skip
def test_what_protects_the_way(uri, transport, protected):
    place = Destination("x", uri)
    assert (place.transport, place.protected) == (transport, protected)


def test_a_destination_that_never_answers_is_given_up(monkeypatch):
    """A host that takes the connection and says nothing: libvirt would wait for ever."""
    monkeypatch.setattr(places, "OPEN_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = Destination("kvm2", f"qemu+tcp://127.0.0.1:{silent.getsockname()[1]}/system")
        cause = r"kvm2 is not reachable: no answer within 0\.5 s"
        with pytest.raises(UnreachableError, match=cause), place.connection():
            pass
    assert threading.active_count() < 50


def asked(**document):
    return MigrateParameters.model_validate_json(json.dumps({"to": "kvm2", **document}))


@pytest.mark.parametrize(
    ("document", "cause"),
    [
        ({"copy_disk": ["vda"]}, "copy_storage is none"),
        ({"copy_disk": ["vda"], "shared_disk": ["vda"], "copy_storage": "full"}, "vda cannot be both"),
        ({"transport": "tunnelled", "encrypt": True}, "tunnelled goes without"),
        ({"mode": "offline", "copy_storage": "full"}, "offline moves the definition only"),
        ({"on_timeout": "post-copy"}, "needs post_copy allowed"),
        ({"auto_converge_step_percent": 5}, "need auto_converge"),
        ({"within_s": 1}, "greater than or equal to 5"),
        ({"to": ""}, "at least 1"),
        ({"migrate_uri": "tcp://attacker"}, "Extra inputs"),
    ],
)
def test_what_does_not_fit_together(document, cause):
    with pytest.raises(ValidationError, match=cause):
        asked(**document)


def test_flags_and_typed_parameters_are_libvirts():
    live = asked(auto_converge=True, compression="xbzrle", copy_storage="incremental", post_copy="allowed")
    flags = migration_flags(live, persistent=True)
    for name in ("LIVE", "AUTO_CONVERGE", "COMPRESSED", "NON_SHARED_INC", "POSTCOPY", "PERSIST_DEST",
                 "UNDEFINE_SOURCE", "ABORT_ON_ERROR"):  # fmt: skip
        assert flags & getattr(libvirt, f"VIR_MIGRATE_{name}"), name
    for name in ("UNSAFE", "PEER2PEER", "TUNNELLED", "OFFLINE", "NON_SHARED_DISK", "TLS"):
        assert not flags & getattr(libvirt, f"VIR_MIGRATE_{name}"), name
    assert not migration_flags(live, persistent=False) & libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
    assert not migration_flags(asked(keep_source=True), True) & libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
    place = Destination.parse(KVM2)
    typed = typed_parameters(asked(new_name="www1", bandwidth_mib_per_second=7), place, ["vda"])
    assert typed == {"destination_name": "www1", "bandwidth": 7, "migrate_uri": "tcp://192.0.2.7",
                     "migrate_disks": ["vda"]}  # fmt: skip
    assert "migrate_uri" not in typed_parameters(asked(transport="tunnelled"), place, [])


DISKS = """<domain><devices>
<disk type='file' device='disk'><source file='{folder}/a.raw'/><target dev='vda'/></disk>
<disk type='block' device='disk'><source dev='/dev/vg/b'/><target dev='vdb'/></disk>
<disk type='network' device='disk'><source protocol='rbd' name='p/c'/><target dev='vdc'/></disk>
<disk type='file' device='disk'><source file='{folder}/d.raw'/><target dev='vdd'/><shareable/></disk>
<disk type='volume' device='disk'><source pool='gone' volume='e'/><target dev='vde'/></disk>
<disk type='file' device='disk'><source file='/x.raw'/><target dev='vdf'/><readonly/></disk>
<disk type='file' device='cdrom'><source file='/x.iso'/><target dev='sda'/></disk>
<disk type='file' device='cdrom'><target dev='sdb'/></disk>
</devices></domain>"""


@pytest.fixture
def connection():
    opened = libvirt.open("test:///default")
    yield opened
    opened.close()


def mounts(tmp_path, kind):
    """A mountinfo as of proc(5), where `tmp_path` is on a file system of this kind."""
    file = tmp_path / "mountinfo"
    point = str(tmp_path.resolve()).replace(" ", "\\040")
    file.write_text(
        "22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n"
        f"50 22 0:50 / {point} rw,relatime shared:9 - {kind} server:/export rw\n"
    )
    return file


def test_which_disks_are_local(tmp_path, connection):
    found = {disk.target: disk.seen for disk in guest_disks(connection, DISKS.format(folder=tmp_path), None)}
    assert found == {"vda": "local", "vdb": "local", "vdc": "shared", "vdd": "shared", "vde": "local"}
    on_nfs = guest_disks(connection, DISKS.format(folder=tmp_path), mounts(tmp_path, "nfs4"))
    assert (on_nfs[0].target, on_nfs[0].seen, on_nfs[0].why) == ("vda", "shared", "on nfs4")


def test_the_file_system_is_that_of_the_innermost_and_last_mount(tmp_path):
    folder = tmp_path / "with blank"
    folder.mkdir()
    table = mounts(folder, "ceph")
    assert file_system_of(str(folder / "disk.raw"), table) == "ceph"
    assert file_system_of("/elsewhere/disk.raw", table) == "ext4"
    assert file_system_of(str(folder) + "2/disk.raw", table) == "ext4"
    with table.open("a") as more:
        more.write(f"51 50 0:51 / {str(folder.resolve()).replace(' ', chr(92) + '040')} rw - tmpfs none rw\n")
    assert file_system_of(str(folder / "disk.raw"), table) == "tmpfs"
    link = tmp_path / "link"
    link.symlink_to(folder)
    assert file_system_of(str(link / "disk.raw"), table) == "tmpfs"


def test_what_other_hosts_may_use_too(tmp_path):
    pool = f"<pool type='{{}}'><name>p</name><target><path>{tmp_path}</path></target></pool>"
    for kind in ("netfs", "rbd", "iscsi"):
        assert shared_with_others(pool.format(kind), mounts(tmp_path, "ext4")) == kind
    assert shared_with_others(pool.format("dir"), mounts(tmp_path, "nfs4")) == "nfs4"
    assert shared_with_others(pool.format("dir"), mounts(tmp_path, "ext4")) == ""
    assert shared_with_others(pool.format("dir"), None) == shared_with_others("<pool type='logical'/>") == ""


def test_a_disk_that_would_be_lost_is_named(tmp_path, connection):
    disks = guest_disks(connection, DISKS.format(folder=tmp_path), None)
    with pytest.raises(RefusedError, match=r"vda \(.*a\.raw, on unknown\); vdb \(/dev/vg/b, a device.*; vde"):
        check_disks("web1", disks, asked())
    with pytest.raises(RefusedError, match=r"disk vdb .*--shared-disk vdb"):
        check_disks("web1", disks, asked(shared_disk=["vda", "vde"]))
    with pytest.raises(RefusedError, match="disk vde"):
        check_disks("web1", disks, asked(copy_storage="full", copy_disk=["vda"], shared_disk=["vdb"]))
    everything = asked(copy_storage="full", shared_disk=["vdb"])
    check_disks("web1", disks, everything)
    assert copied_targets(disks, everything) == ["vda", "vde"]


def test_progress_in_words():
    stats = {"memory_iteration": 3, "memory_remaining": 5 << 20, "memory_bps": 30 << 20, "memory_dirty_rate": 900,
             "data_total": 100, "data_remaining": 25, "downtime": 1500}  # fmt: skip
    step = progress_of(stats)
    assert step.phase == "pass 3, 5 MiB of memory left, 30 MiB/s, the guest dirties 900 pages/s"
    assert step.fraction == 0.75
    assert progress_of({}).fraction is None
    assert job_facts(stats)["downtime_s"] == 1.5
    assert job_facts({}) == {}


RUNS, SHELL = {"state": "running", "active": True}, {"state": "paused", "reason": "migration", "active": True}
ABSENT = {"state": "absent"}


@pytest.mark.parametrize(
    ("here", "there", "one", "told"),
    [
        (RUNS, ABSENT, True, "it is running here"),
        (RUNS, SHELL, True, "it is running here"),
        (ABSENT, RUNS, True, "it is running on kvm2"),
        ({"state": "paused", "reason": "postcopy", "active": True}, RUNS, True, "it is running on kvm2"),
        (RUNS, RUNS, False, "it is active on both hosts: running here, running on kvm2"),
        (ABSENT, ABSENT, False, "it runs on neither host: absent here, absent on kvm2"),
        (RUNS, None, False, "it is running here; kvm2 did not answer"),
        (None, None, False, "it was not found running; this host did not answer; kvm2 did not answer"),
    ],
)
def test_where_it_runs_is_never_guessed(here, there, one, told):
    sides = Sides(here, there, "kvm2")
    assert (sides.exactly_one, sides.told()) == (one, told)


def broken_pipe(
    monkeypatch, tmp_path, mark, sides=Sides(RUNS, ABSENT, "kvm2"), code=libvirt.VIR_ERR_OPERATION_FAILED  # noqa: B008
):
    """The ControlError of a migration that QEMU calls a broken pipe, with or without an abort of ours."""
    monkeypatch.setattr(migration, "look_at_both", lambda *_where: sides)
    uuid = "0e5e1f4a-6d0e-4b9b-9a5c-7d2b7a1c3e55"
    call = SimpleNamespace(
        subject=SimpleNamespace(name="web1", uuid=uuid), folders=Folders(tmp_path), session=None
    )  # fmt: skip
    error = libvirt.libvirtError("job 'migration out' failed: Unable to write to socket: Broken pipe")
    error.err = (code, libvirt.VIR_FROM_QEMU, str(error), 2, "", "", "", -1, -1)
    if mark:
        migration_job.abort_mark(call.folders, uuid).touch()
    watch = SimpleNamespace(paused=False, destination_lost=False, stopped=None)
    return migration.Migrate()._failed(call, Destination("kvm2", "qemu+tls://kvm2/system", ""), watch, error)


def test_what_was_aborted_is_said_to_be_whatever_qemu_calls_it(monkeypatch, tmp_path):
    aborted = broken_pipe(monkeypatch, tmp_path, mark=True)
    assert str(aborted).startswith("migration of domain web1 to kvm2 was aborted; it is running here (")
    assert "Broken pipe" in str(aborted)


def test_a_guest_that_libvirt_knows_no_more(monkeypatch, tmp_path):
    gone = broken_pipe(monkeypatch, tmp_path, mark=False, sides=Sides(ABSENT, ABSENT, "kvm2"),
                       code=libvirt.VIR_ERR_NO_DOMAIN)  # fmt: skip
    assert isinstance(gone, NotFoundError)
    assert "it runs on neither host" in str(gone)
    assert gone.outcome_unknown


def test_what_broke_by_itself_was_not_aborted(monkeypatch, tmp_path):
    broken = broken_pipe(monkeypatch, tmp_path, mark=False)
    assert str(broken).startswith("migration of domain web1 to kvm2 failed; it is running here (")


def test_an_abort_that_libvirt_refuses_leaves_no_word_of_it(tmp_path):
    """A failure that comes later was not aborted by anybody. The test driver aborts nothing."""
    session = Session("test:///default")
    call = Call(session, find_domain(session, "test"), Folders(tmp_path), Deadline(5))
    with pytest.raises(libvirt.libvirtError):
        migration_job.MigrateAbort().act(call, NoParameters())
    assert not migration_job.abort_mark(call.folders, call.subject.uuid).exists()
    session.close()

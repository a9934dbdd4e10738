"""The audit trail in the archive's database: complete, once, comparable, whatever is cut off or killed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest
from pymongo import MongoClient

from exporter import cli
from exporter.archive.documents import Host
from exporter.archive.embedded import EmbeddedServer
from exporter.archive.errors import ArchiveBusyError
from exporter.archive.trail_archive import TrailArchive
from exporter.archive.trail_reading import archived_records
from exporter.archive.writer import Patience
from exporter.config import ArchiveSettings
from exporter.control.audit import Trail
from tests.exporter.archive.archive_rig import wait_until

HOST = Host(UUID("11111111-2222-4333-8444-555555555555"), "alpha")
QUICK = Patience(first_s=0.05, most_s=0.3, refused_s=0.3, pause_s=0.0)
WEB1 = {"kind": "domain", "name": "web1", "uuid": "d61f00c8-8819-5aef-9860-c529fe864c9e"}


class Archived:
    """A trail, its archive and the database."""

    def __init__(self, folder: Path, uri: str, database: str) -> None:
        self.state = folder
        self.folder = folder / "control"
        self.folder.mkdir(exist_ok=True)
        self.uri, self.database = uri, database
        self.trail = Trail(self.folder / "audit.jsonl")

    @contextmanager
    def running(self, uri: str | None = None) -> Iterator[TrailArchive]:
        settings = ArchiveSettings(uri=uri or self.uri, database=self.database)
        archive = TrailArchive(settings, self.folder, self.trail.path, self.state / "archive", lambda: HOST,
                               patience=QUICK)
        archive.start()
        try:
            yield archive
        finally:
            archive.stop()

    def wait_stored(self, archive: TrailArchive) -> None:
        wait_until(lambda: archive.follower.caught_up() and archive.writer.drained(), "the database has the trail")

    def records(self, **wanted: object) -> list[dict[str, object]]:
        with MongoClient(self.uri, tz_aware=True, uuidRepresentation="standard") as client:
            found = list(archived_records(client[self.database], **wanted))
        return [{name: value for name, value in record.items() if name != "host_name"} for record in found]

    def command(self, *words: str) -> int:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("VIRTGAUGE_ARCHIVE_URI", self.uri)  # it holds a password, so no flag
            return cli.run(["control", "audit", *words, "--state.directory", str(self.state),
                            "--archive.database", self.database])


@pytest.fixture
def archived(tmp_path: Path, archive_server: EmbeddedServer, database_name: str) -> Archived:
    return Archived(tmp_path, archive_server.uri(60), database_name)


def test_every_record_arrives_once_as_it_was_written(archived: Archived) -> None:
    archived.trail.append("begin", {"operation": "domain.start", "subject": WEB1, "parameters": {"a.b": {"$x": 2**70}}})
    with archived.running() as archive:
        for number in range(300):
            archived.trail.append("end", {"subject": WEB1, "reason": f"\ud800 <&> {number}", "changed": True})
        archived.wait_stored(archive)
        assert archive.state().stored == archive.state().spooled == 301
    assert archived.records() == archived.trail.records()
    with archived.running() as archive:  # goes on where it was
        archived.trail.append("refused", {"error": {"kind": "busy", "cause": "another holds it"}})
        archived.wait_stored(archive)
        assert archive.state().spooled == 1
    assert archived.records() == archived.trail.records()
    assert len(archived.records(domain="web1")) == len(archived.records(domain=WEB1["uuid"])) == 301
    assert archived.records(domain="web2") == []


def test_what_is_sent_again_is_there_once(archived: Archived) -> None:
    for number in range(5):
        archived.trail.append("begin", {"number": number})
    for _ in range(2):
        with archived.running() as archive:
            archived.wait_stored(archive)
        shutil.rmtree(archived.folder / "archive")  # position and spool are lost
    assert archived.records() == archived.trail.records()


def test_a_database_that_is_away_costs_no_record(archived: Archived) -> None:
    archived.trail.append("begin", {})
    with archived.running("mongodb://127.0.0.1:9/?serverSelectionTimeoutMS=100") as archive:
        wait_until(lambda: archive.state().fault == "unreachable", "the fault shows")
        archived.trail.append("end", {})
        wait_until(archive.follower.caught_up, "the trail is spooled")
        assert archive.state().waiting == 2
    with archived.running() as archive:
        archived.wait_stored(archive)
    assert archived.records() == archived.trail.records()


def test_a_torn_line_and_a_trail_that_was_moved_away(archived: Archived) -> None:
    archived.trail.append("begin", {})
    with archived.running() as archive:
        archived.wait_stored(archive)
        with archived.trail.path.open("ab") as file:
            file.write(b'{"sequence": 2, "ti')
        archived.trail.append("end", {})
        archived.wait_stored(archive)
        first = archived.trail.records()
        assert archived.records() == first
        archived.trail.path.rename(archived.folder / "old.jsonl")
        archived.trail.append("begin", {"new": "trail"})
        archived.wait_stored(archive)
    assert archived.records() == first + archived.trail.records()
    assert archived.command("--archive", "--verify") == 0


def test_a_second_process_is_refused(archived: Archived) -> None:
    with archived.running(), pytest.raises(ArchiveBusyError, match=str(os.getpid())), archived.running():
        pass


def test_verify_finds_a_trail_that_was_cut_or_written_anew(archived: Archived,
                                                           capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(4):
        archived.trail.append("begin", {"number": number, "subject": WEB1})
    with archived.running() as archive:
        archived.wait_stored(archive)
    assert archived.command("--archive", "--verify", "--output", "json") == 0
    shown = json.loads(capsys.readouterr().out)["details"]
    assert (shown["verified_records"], shown["compared_with_archive"]) == (4, 4)
    assert [row["host_name"] for row in shown["rows"]] == ["alpha"] * 4

    lines = archived.trail.path.read_bytes().splitlines(keepends=True)
    archived.trail.path.write_bytes(b"".join(lines[:3]))
    assert archived.command("--verify") == 0  # by itself a trail without its end looks whole
    assert archived.command("--archive", "--verify") == 1
    assert "record 4 of" in capsys.readouterr().err

    with MongoClient(archived.uri) as client:
        found = client[archived.database]
        name = next(name for name in found.list_collection_names() if name.startswith("audit_"))
        line = found[name].find_one({"sequence": 2})["line"]
        found[name].update_one({"sequence": 2}, {"$set": {"line": line.replace('"number":1', '"number":7')}})
    archived.trail.path.write_bytes(b"".join(lines))
    assert archived.command("--archive", "--verify") == 1
    assert "record 2 of the archive was changed" in capsys.readouterr().err

"""The host of the samples: libvirt's UUID, and one of our making where the driver has none."""

from __future__ import annotations

from uuid import UUID

import pytest
from pymongo import MongoClient

from collectors.connection import Opener, host_identity
from exporter.config import Settings
from exporter.service import Exporter
from exporter.setting_catalogue import collector_defaults
from exporter.setting_loading import load_settings
from tests.exporter.archive.archive_rig import uri_of, wait_until

pytestmark = pytest.mark.live
URI = "test:///default"


def test_a_driver_without_a_uuid_gets_the_same_one_each_time():
    uuid, name = host_identity(Opener(URI))
    assert host_identity(Opener(URI)) == (uuid, name)
    assert UUID(uuid).version == 5
    assert name


def test_an_exporter_on_such_a_driver_archives_everything(archive_server, database_name, tmp_path):
    settings = load_settings(
        Settings, flags={"libvirt.uri": URI, "state.directory": str(tmp_path), "sampling.interval": "1s",
                         "archive.database": database_name},
        environ={"VIRTGAUGE_ARCHIVE_URI": uri_of(archive_server)}, collectors=collector_defaults(), is_root=True)
    exporter = Exporter(settings)
    exporter.start()
    try:
        counts = exporter.archive.spool.counts
        wait_until(lambda: counts.spooled_samples >= 3, "samples are spooled")
    finally:
        exporter.stop()
    assert not any(counts.dropped_samples.values())
    with MongoClient(uri_of(archive_server), uuidRepresentation="standard") as client:
        uuid, name = host_identity(Opener(URI))
        documents = [document for collection in client[database_name].list_collection_names()
                     if collection.startswith("raw_") for document in client[database_name][collection].find()]
    assert sum(document["count"] for document in documents) == counts.spooled_samples
    assert {"test"} <= {document["name"] for document in documents if document["kind"] == "domain"}
    assert {(document["host"], document["host_name"]) for document in documents} == {(UUID(uuid), name)}

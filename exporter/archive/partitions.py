"""Partitions in the database: made with their index where they are missing."""

from __future__ import annotations

from pymongo.errors import CollectionInvalid, OperationFailure

from exporter.archive.connection import Database
from exporter.archive.documents import SERIES_INDEX


def prepare_partition(database: Database, name: str, compress: bool) -> None:
    """Makes a partition and its index where they are missing; ``compress`` asks a real mongod for zstandard."""
    engine = {"wiredTiger": {"configString": "block_compressor=zstd"}}
    try:
        if compress:
            try:
                database.create_collection(name, storageEngine=engine)
            except OperationFailure as error:
                if error.code not in (2, 72, 115):  # another storage engine, or no right to choose: plainly, then
                    raise
        else:
            database.create_collection(name)
    except CollectionInvalid:
        pass
    except OperationFailure as error:
        if error.code != 48:  # another host was first
            raise
    database[name].create_index(list(SERIES_INDEX))

"""What a failed write means: which fault it is, whether to ask again soon, which documents are stored all the same."""

from __future__ import annotations

from enum import Enum

from bson.errors import InvalidDocument
from pymongo.errors import (
    AutoReconnect,
    BulkWriteError,
    ConfigurationError,
    NotPrimaryError,
    OperationFailure,
    PyMongoError,
    WriteConcernError,
)

from exporter.archive.errors import HostBusyError, SchemaError
from exporter.errors import SettingsError


class Fault(Enum):
    """Why the database does not take samples; the value is the label of the metrics."""

    UNREACHABLE = "unreachable"
    NOT_PRIMARY = "not_primary"
    AUTHENTICATION = "authentication"
    DISK_FULL = "disk_full"
    WRITE_CONCERN = "write_concern"
    SCHEMA = "schema"
    SETTINGS = "settings"
    HOST_BUSY = "host_busy"
    OTHER = "other"

    @property
    def is_refusal(self) -> bool:
        """Whether only a person can mend it: asking often would fill logs and lock accounts."""
        return self in (Fault.AUTHENTICATION, Fault.SCHEMA, Fault.SETTINGS, Fault.HOST_BUSY)


# https://github.com/mongodb/mongo/blob/master/src/mongo/base/error_codes.yml
_AUTHENTICATION = {11, 13, 18, 8000, 391}
_NOT_PRIMARY = {91, 189, 10058, 10107, 11600, 11602, 13435, 13436}
_DISK_FULL = {14031, 39}
_DUPLICATE = 11000
_POISON = {2, 121, 10334, 17419, 17420, 17280}


def fault_of(error: Exception) -> Fault:
    """The fault behind an error of the driver or of ours."""
    if isinstance(error, SchemaError):
        return Fault.SCHEMA
    if isinstance(error, SettingsError):
        return Fault.SETTINGS
    if isinstance(error, HostBusyError):
        return Fault.HOST_BUSY
    if isinstance(error, WriteConcernError) or (isinstance(error, BulkWriteError)
                                                and error.details.get("writeConcernErrors")):
        return Fault.WRITE_CONCERN
    if isinstance(error, NotPrimaryError):
        return Fault.NOT_PRIMARY
    codes = _codes(error)
    for fault, known in ((Fault.AUTHENTICATION, _AUTHENTICATION), (Fault.NOT_PRIMARY, _NOT_PRIMARY),
                         (Fault.DISK_FULL, _DISK_FULL)):
        if codes & known:
            return fault
    if "No space left" in str(error):
        return Fault.DISK_FULL
    if isinstance(error, OperationFailure) or not isinstance(error, PyMongoError | OSError):
        return Fault.OTHER if isinstance(error, PyMongoError) else Fault.UNREACHABLE
    # An SRV name that is not found is a ConfigurationError; a URI that is wrong was a SettingsError before.
    return Fault.UNREACHABLE if isinstance(error, AutoReconnect | ConfigurationError | OSError) else Fault.OTHER


def is_poison(error: PyMongoError | InvalidDocument) -> bool:
    """Whether a document itself is refused, so that sending it again is no use.

    The driver's own DocumentTooLarge is an InvalidDocument and no PyMongoError.
    """
    if isinstance(error, InvalidDocument):
        return True
    if isinstance(error, BulkWriteError):
        codes = _codes(error) - {_DUPLICATE}
        return bool(codes) and codes <= _POISON and not error.details.get("writeConcernErrors")
    return isinstance(error, OperationFailure) and error.code in _POISON


def unstored(error: BulkWriteError) -> list[int]:
    """Places of a batch's documents that are not in the database; those that were there already are.

    Raises the error itself where the acknowledgement was not what was asked for: then nothing is certain.
    """
    if error.details.get("writeConcernErrors"):
        raise error
    return [each["index"] for each in error.details.get("writeErrors", ()) if each.get("code") != _DUPLICATE]


def _codes(error: Exception) -> set[int]:
    if isinstance(error, BulkWriteError):
        return {each.get("code", 0) for each in error.details.get("writeErrors", ())}
    code = getattr(error, "code", None)
    return {code} if isinstance(code, int) else set()

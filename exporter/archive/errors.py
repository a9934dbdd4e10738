"""What goes wrong with the archive, under the program's own error tree."""

from __future__ import annotations

from exporter.errors import VirtgaugeError


class ArchiveError(VirtgaugeError):
    """The archive cannot be used as asked; the message names the cause and the next step."""


class SpoolError(ArchiveError):
    """The spool's folder cannot be used."""


class ArchiveBusyError(ArchiveError):
    """Another virtgauge uses the same state folder."""


class HostBusyError(ArchiveError):
    """Another virtgauge writes this host's samples into the same database."""


class EmbeddedServerError(ArchiveError):
    """The embedded server is not installed or does not start."""


class SchemaError(ArchiveError):
    """The database has a schema of a version that this virtgauge does not know."""

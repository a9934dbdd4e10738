"""The archive's own series, through the same Record and Field tables as all others."""

from __future__ import annotations

from collections.abc import Callable

from collectors.fields import Collector, Field, Kind, Labels
from collectors.snapshot import Record, Subject, Value
from exporter.archive.faults import Fault
from exporter.archive.spool import Spool
from exporter.archive.writer import Writer

_SUBJECT = Subject("exporter", ("exporter",), ())
_DROPS = {"spool_full": "the spool reached its limit", "disk_full": "the spool's disk is full",
          "late": "the spool's disk is too slow", "no_host": "the host's UUID is not known",
          "refused": "the database refuses the document, which is put aside"}


def _own(source: str, name: str, text: str, kind: Kind = Kind.GAUGE, fixed: Labels = ()) -> Field:
    return Field(f"archive.{source}", f"virtgauge_archive_{name}", kind, text, fixed=fixed, subject_labels=(), since="")


def _each_fault(source: str, name: str, text: str, kind: Kind = Kind.GAUGE) -> tuple[Field, ...]:
    return tuple(_own(f"{source}.{fault.value}", name, text, kind, (("fault", fault.value),)) for fault in Fault)


ARCHIVE = Collector(
    name="archive",
    help="The archive: what is spooled, sent, late and lost.",
    declarations=(
        _own("lag", "lag_seconds", "Seconds since the newest sample that the database has (archive.lag, seconds)."),
        _own("spool.bytes", "spool_bytes", "Bytes of the spool on the disk (archive.spool, bytes)."),
        _own("spool.limit", "spool_limit_bytes", "Bytes that the spool may have (archive.spool.limit, bytes)."),
        _own("spool.age", "spool_age_seconds",
             "Seconds since the oldest sample that the database does not have (archive.spool, seconds); absent while "
             "there is none."),
        _own("spooled", "spooled_samples_total",
             "Samples of an object that are safe in the spool (archive.spool, samples).", Kind.COUNTER),
        _own("stored", "stored_samples_total",
             "Samples of an object that the database acknowledged (archive.writer, samples).", Kind.COUNTER),
        *(_own(f"dropped.{reason}", "dropped_samples_total",
               "Samples of an object that are lost, by reason (archive.spool, samples).", Kind.COUNTER,
               (("reason", reason),)) for reason in _DROPS),
        _own("damaged", "spool_damages_total",
             "Stretches of the spool that could not be read (archive.spool, stretches).", Kind.COUNTER),
        _own("batches", "batches_total", "Inserts that the database acknowledged (archive.writer, inserts).",
             Kind.COUNTER),
        _own("documents", "documents_total", "Documents in those inserts (archive.writer, documents).", Kind.COUNTER),
        _own("duplicates", "duplicates_total",
             "Documents that were there already when they were sent again (archive.writer, documents).", Kind.COUNTER),
        _own("quarantined", "quarantined_documents_total",
             "Documents the database refuses for good, put aside in the spool's folder (archive.writer, documents).",
             Kind.COUNTER),
        _own("discarded", "discarded_documents_total",
             "Documents the database refuses for good that were not put aside, since those before them take an eighth "
             "of archive.spool.limit (archive.writer, documents).", Kind.COUNTER),
        *_each_fault("retries", "retries_total", "Attempts to write that failed, by fault (archive.writer, attempts).",
                     Kind.COUNTER),
        *_each_fault("fault", "fault", "1 while the database takes no samples for this reason, else 0 "
                     "(archive.writer, boolean)."),
        _own("error.time", "last_error_timestamp_seconds",
             "Time of the last failed attempt (archive.writer, seconds since the epoch); absent while there was none."),
    ),
)


def own_record(spool: Spool, writer: Writer, sampled_at_s: float, wall_clock: Callable[[], float]) -> Record:
    """The archive's values now.  Any thread; reads plain numbers only."""
    counts, now_s = writer.counts, wall_clock()
    stats: dict[str, Value] = {
        "archive.spool.bytes": spool.size_bytes, "archive.spool.limit": spool.limit_bytes,
        "archive.spooled": spool.counts.spooled_samples, "archive.stored": counts.samples,
        "archive.damaged": spool.counts.damaged_stretches, "archive.batches": counts.batches,
        "archive.documents": counts.documents, "archive.duplicates": counts.duplicates,
        "archive.quarantined": counts.quarantined, "archive.discarded": counts.discarded}
    for reason in _DROPS:
        stats[f"archive.dropped.{reason}"] = spool.counts.dropped_samples.get(reason, 0)
    for fault in Fault:
        stats[f"archive.retries.{fault.value}"] = counts.retries[fault]
        stats[f"archive.fault.{fault.value}"] = fault is counts.fault
    if counts.acknowledged_ms:
        stats["archive.lag"] = max(0.0, round(now_s - counts.acknowledged_ms / 1000, 3))
    if counts.oldest_waiting_ms:
        stats["archive.spool.age"] = max(0.0, round(now_s - counts.oldest_waiting_ms / 1000, 3))
    if counts.last_error_s:
        stats["archive.error.time"] = counts.last_error_s
    return Record(_SUBJECT, "archive", stats, sampled_at_s)

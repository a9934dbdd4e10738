"""History of one domain out of the archive: numpy arrays for fields, devices and a span.

The span decides what is read: raw samples, 5-minute or 1-hour points. Where the chosen resolution does not reach
(roll-ups that are not made yet, raw partitions that are dropped already) the next one fills in. Minimum and maximum
are kept on the way to fewer points, so that a spike survives; a gap stays a gap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from exporter.archive.document_reader import Database, DocumentReader, Unsealed
from exporter.archive.documents import FIVE_MINUTES, HOURLY, RAW, RESOLUTIONS, Resolution
from exporter.archive.history_errors import telling_failures
from exporter.archive.history_fields import HistoryField
from exporter.archive.history_parts import FoundParts, Part, PartReader
from exporter.archive.points import Points, in_steps, nice_step_s
from exporter.archive.timespan import Span, iso
from exporter.errors import UsageError

MOST_POINTS = 1000
"""Points of one series where nothing is said."""
MOST_ASKED_POINTS = 11_000
"""Points that an explicit step may give: Prometheus's own limit."""
LONGEST_RAW_S = 6 * 3600.0
LONGEST_FIVE_MINUTES_S = 14 * 86400.0


@dataclass(frozen=True, slots=True)
class Series:
    """One field of one device; `device` is empty for the domain itself."""

    field: HistoryField
    device: str
    points: Points


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read: `step_s` between points, 0 where they are the samples; `parts` in order of time.

    `unsealed` says that the last minute, not yet in the database, is included; `left_out_before_s`, that after a long
    outage older samples of that kind may be missing, 0 where none is.
    """

    span: Span
    step_s: float
    parts: tuple[Part, ...]
    series: tuple[Series, ...]
    unsealed: bool
    left_out_before_s: float = 0.0


class History:
    """Reads one database. Any thread; every method blocks, and raises HistoryError where the database fails."""

    def __init__(self, database: Database, unsealed: Unsealed | None = None) -> None:
        self._database = database
        self._unsealed = unsealed

    def read(
        self,
        uuid: UUID,
        fields: Sequence[HistoryField],
        span: Span,
        step_s: float | None = None,
        most_points: int = MOST_POINTS,
    ) -> Reading:
        """The series of these fields, each of at most `most_points` points, or one a step where `step_s` is given.

        Raises UsageError where the step would give too many points.
        """
        if step_s is not None and span.seconds / step_s > MOST_ASKED_POINTS:
            least = nice_step_s(span.seconds / MOST_ASKED_POINTS)
            raise UsageError(
                f"a step of {step_s:g}s gives {span.seconds / step_s:.0f} points, more than {MOST_ASKED_POINTS}; "
                f"take a step of {least:g}s or more, or a shorter span"
            )
        found = self.parts(uuid, fields, span, chosen_resolution(span, step_s))
        step_s = self._step_s(found, span, step_s, most_points)
        series = tuple(
            Series(field, device, self._thinned(points, span, step_s, field.is_counter))
            for (field, device), points in found.points.items()
        )
        return Reading(span, step_s, tuple(found.parts), series, found.unsealed, found.left_out_before_s)

    def parts(
        self, uuid: UUID, fields: Sequence[HistoryField], span: Span, resolution: Resolution
    ) -> FoundParts:
        """Every point of the span at that resolution, and at others where it does not reach; not thinned."""
        with telling_failures(self._database):
            documents = DocumentReader(self._database, self._unsealed)
            documents.check_schema()
            return PartReader(documents, uuid, fields).read(span, resolution)

    def _step_s(self, found: FoundParts, span: Span, step_s: float | None, most_points: int) -> float:
        if step_s is not None:
            return step_s
        samples = max((len(points) for points in found.points.values()), default=0)
        if all(part.resolution == RAW.name for part in found.parts) and samples <= most_points:
            return 0.0
        coarsest_s = max((_named(part.resolution).step_s for part in found.parts), default=0)
        # One more step than fits is needed where the span begins in the middle of one.
        fitting_s = nice_step_s(span.seconds / max(1, most_points - 1))
        # A step shorter than two samples would make gaps where there are none.
        twice_s = nice_step_s(2 * span.seconds / samples) if samples and not coarsest_s else 0.0
        return max(fitting_s, float(coarsest_s), twice_s)

    @staticmethod
    def _thinned(points: Points, span: Span, step_s: float, counter: bool) -> Points:
        if step_s:
            return in_steps(points, span.start_s, span.end_s, step_s, counter)
        return points.between(span.start_s, span.end_s)


def chosen_resolution(span: Span, step_s: float | None = None) -> Resolution:
    """What a span, or a step, is read from."""
    if step_s is not None:
        return HOURLY if step_s >= HOURLY.step_s else FIVE_MINUTES if step_s >= FIVE_MINUTES.step_s else RAW
    if span.seconds <= LONGEST_RAW_S:
        return RAW
    return FIVE_MINUTES if span.seconds <= LONGEST_FIVE_MINUTES_S else HOURLY


def _named(resolution: str) -> Resolution:
    return next(r for r in RESOLUTIONS if r.name == resolution)


def resolution_text(reading: Reading) -> str:
    """What was read from, for people: `five_minutes until 2026-11-22T10:00:00Z, then raw`."""
    words: list[str] = []
    for part in reading.parts:
        if words:
            words[-1] += f" until {iso(part.start_s)}, then"
        words.append(part.resolution)
    text = " ".join(words) + (", unsealed minute included" if reading.unsealed else "")
    if reading.left_out_before_s:
        text += f", without what is unsent from before {iso(reading.left_out_before_s)}"
    return text

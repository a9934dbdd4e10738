"""Field: one metric family and the libvirt key it is read from.

The same tables give the page's HELP and TYPE, the metrics reference, the archive's columns and the
tests' list of names; a new metric is one line in the file of its resource.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

NANOSECOND = 1e-9
"""Scale from libvirt's nanoseconds to seconds."""
MILLISECOND = 1e-3
"""Scale from libvirt's milliseconds to seconds."""
KIBIBYTE = 1024.0
"""Scale from libvirt's KiB to bytes."""
MEBIBYTE = 1048576.0
"""Scale from libvirt's MiB to bytes."""

Labels = tuple[tuple[str, str], ...]
"""Label names and values in the order in which the page shows them."""


class Kind(Enum):
    """The Prometheus type of a family."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Family:
    """What the page says of a family before its samples: ``name``, ``kind`` and ``help``."""

    name: str
    kind: Kind
    help: str


@dataclass(frozen=True, slots=True)
class Field:
    """A number of a Record and the series it becomes.

    ``source`` is libvirt's dotted key with ``<n>`` for its first index and ``<m>`` for its second, ``scale`` turns
    libvirt's unit into the base unit of ``name``.  Where ``label`` is given, its value is the name under ``label_key``
    (same index), or the index itself where ``label_key`` is empty; ``inner_label`` and ``inner_label_key`` are the
    same for the second index.  ``fixed`` are labels whose value the field decides.
    A histogram's ``source`` is the count of one bin (``<m>``, not cumulative) and its ``inner_label_key`` the lowest
    value of that bin, in libvirt's unit; a bucket ends where the next bin begins.
    ``archive`` is the column in the archive's documents, a word with libvirt's unit at its end; those with an index
    stand under their device, so ``read_bytes`` and not ``block_read_bytes``.  Empty means that it is not archived.
    ``since`` is the libvirt version that first gave the key, as far as a source tells.
    """

    source: str
    name: str
    kind: Kind
    help: str
    scale: float = 1.0
    label: str = ""
    label_key: str = ""
    fixed: Labels = ()
    archive: str = ""
    since: str = "1.2.9"
    identity: bool = False  # a decrease of this counter means that everything of its record began anew
    zero_is_unknown: bool = False  # libvirt writes 0 where it could not read the value
    signed: bool = False  # a negative value is one; else it is libvirt's way to say "unknown"
    subject_labels: tuple[str, ...] = ("domain",)  # what the record's subject adds, for the reference
    inner_label: str = ""
    inner_label_key: str = ""

    @property
    def family(self) -> Family:
        return Family(self.name, self.kind, self.help)

    @property
    def labels(self) -> tuple[str, ...]:
        """All label names of the series, in page order."""
        own = tuple(filter(None, (self.label, self.inner_label)))
        return self.subject_labels + own + tuple(name for name, _ in self.fixed)


class Ratio(Enum):
    """How a computed value comes from its ``numerator`` (and ``denominator``), see ``rates`` and ``derived``."""

    PER_SECOND = "change of the numerator / change of time"
    PER_CHANGE = "change of the numerator / change of the denominator"
    PER_SECOND_AND_VALUE = "change of the numerator / change of time / value of the denominator"
    COMPLEMENT = "1 - numerator / denominator, of one sample"


@dataclass(frozen=True, slots=True)
class Computed:
    """A value made of one or two Fields of the same Record and index; always a gauge.

    ``numerator`` and ``denominator`` are source patterns as in Field; ``scale`` turns the quotient of libvirt's
    units into the unit of ``name``.  ``single`` reads the denominator without an index (a domain's vCPU count).
    """

    name: str
    ratio: Ratio
    numerator: str
    help: str
    denominator: str = ""
    scale: float = 1.0
    label: str = ""
    label_key: str = ""
    at_most: float = float("inf")  # a ratio's ceiling: clocks of two sources may differ by a tick

    kind = Kind.GAUGE
    archive = ""
    since = "1.2.9"

    @property
    def source(self) -> str:
        return " and ".join(filter(None, (self.numerator, self.denominator)))

    @property
    def family(self) -> Family:
        return Family(self.name, Kind.GAUGE, self.help)

    @property
    def labels(self) -> tuple[str, ...]:
        return ("domain", self.label) if self.label else ("domain",)


@dataclass(frozen=True, slots=True)
class StateSet:
    """One 0/1 series for each named state of an enumeration, exactly one of them 1.

    ``source`` is read as libvirt's number; ``states`` gives the names by number.
    """

    source: str
    name: str
    help: str
    states: tuple[str, ...]
    label: str = "state"
    archive: str = ""
    since: str = "1.2.8"
    subject_labels: tuple[str, ...] = ("domain",)

    kind = Kind.GAUGE

    @property
    def family(self) -> Family:
        return Family(self.name, Kind.GAUGE, self.help)

    @property
    def labels(self) -> tuple[str, ...]:
        return (*self.subject_labels, self.label)


@dataclass(frozen=True, slots=True)
class StateNumber:
    """One series whose value is an enumeration's number and whose label is its name: other exporters' way."""

    source: str
    name: str
    help: str
    states: tuple[str, ...]
    label: str
    archive: str = ""
    since: str = "1.2.8"

    kind = Kind.GAUGE

    @property
    def family(self) -> Family:
        return Family(self.name, Kind.GAUGE, self.help)

    @property
    def labels(self) -> tuple[str, ...]:
        return ("domain", self.label)


@dataclass(frozen=True, slots=True)
class Info:
    """A family of constant series (value 1, or a limit's number) compiled from labels: see ``Constant``."""

    name: str
    help: str
    label_names: tuple[str, ...]
    source: str = "domain XML"
    archive: str = ""
    since: str = "1.2.8"
    kind: Kind = Kind.GAUGE

    @property
    def family(self) -> Family:
        return Family(self.name, self.kind, self.help)

    @property
    def labels(self) -> tuple[str, ...]:
        return self.label_names


Declaration = Field | Computed | StateSet | StateNumber | Info


@dataclass(frozen=True, slots=True)
class Constant:
    """A series whose value stays while its Record's ``constants`` tuple is the same object.

    ``labels`` come after those of the record's subject.
    """

    name: str
    labels: Labels
    value: float = 1.0


@dataclass(frozen=True, slots=True)
class Collector:
    """One resource: its flag's name, the bulk statistics groups it needs and its tables.

    ``groups`` are names of libvirt's groups (``cpu-total``, ``block``, ...; see ``sampler``).
    """

    name: str
    help: str
    declarations: tuple[Declaration, ...]
    groups: tuple[str, ...] = ()
    default: bool = True

    def fields(self) -> Iterator[Field]:
        return (d for d in self.declarations if isinstance(d, Field))


def escape_label_value(value: str) -> str:
    """``value`` as it stands between the quotes of a label (exposition formats, both).

    Characters that UTF-8 cannot carry (lone surrogates) become U+FFFD, so that one odd title cannot break a page.
    """
    text = value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")

"""A small fleet whose every number is known by formula, as documents of the archive."""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID, uuid5

from exporter.archive.documents import (
    FIVE_MINUTES,
    HOURLY,
    RAW,
    SERIES_INDEX,
    SERIES_INDEX_NAME,
    Host,
    Object,
    RollUp,
    Window,
    window_origin,
)

HOST = Host(UUID("3f6e0c7e-24a5-4c8e-9a0b-000000000001"), "alpha")
MIB = 1 << 20


@dataclass
class Guest:
    """A guest with two vCPUs, one disk and one NIC.

    `busy` is its CPU use in cores, `written` the bytes it writes in a second, both by time; `restarts` are times at
    which its counters begin anew.
    """

    name: str
    host: Host = HOST
    busy: object = staticmethod(lambda t: 0.5)
    written: object = staticmethod(lambda t: 1000)
    restarts: tuple = ()
    memory_kib: int = 1 << 20
    uuid: UUID = field(init=False)

    def __post_init__(self):
        self.uuid = uuid5(HOST.uuid, self.name)

    def object(self):
        return Object(self.host, "domain", self.uuid, self.name)


def samples(guest, start_s, end_s, every_s=15):
    """(time, columns) of each sample; counters are the sums of the guest's functions since its last start."""
    cpu_ns = written = 0
    out = []
    for t in range(start_s, end_s, every_s):
        if t in guest.restarts:
            cpu_ns = written = 0
        elif out:
            cpu_ns += round(guest.busy(t) * every_s * 1e9)
            written += guest.written(t) * every_s
        values = {
            "cpu_time_ns": cpu_ns, "vcpu_count": 2, "memory_current_kib": guest.memory_kib,
            "memory_available_kib": guest.memory_kib,
            "memory_usable_kib": guest.memory_kib // 4 if t % 60 == 0 else None,
        }
        devices = {
            "vcpus": {str(n): {"time_ns": cpu_ns // 2, "delay_ns": cpu_ns // 20} for n in range(2)},
            "disks": {"vda": {"write_bytes": written, "write_requests": written // 100,
                              "write_time_ns": written * 1000, "read_bytes": 0, "read_requests": 0,
                              "capacity_bytes": 100 * MIB, "allocation_bytes": 10 * MIB + (t - start_s) * 1024}},
            "interfaces": {"vnet0": {"receive_bytes": written * 2, "transmit_bytes": written}},
        }
        out.append((t, values, devices))
    return out


def raw_documents(guest, rows, window_s=60):
    """The windows of these samples, cut at whole minutes and at restarts."""
    windows = []
    for row in rows:
        t = row[0]
        if not windows or t // window_s != windows[-1][0][0] // window_s or t in guest.restarts:
            windows.append([])
        windows[-1].append(row)
    return [_window(guest, window) for window in windows]


def _window(guest, rows):
    start = rows[0][0]
    values = {name: [row[1][name] for row in rows] for name in rows[0][1]}
    devices = {
        group: {device: {name: [row[2][group][device][name] for row in rows] for name in columns}
                for device, columns in by_device.items()}
        for group, by_device in rows[0][2].items()
    }
    window = Window(guest.object(), start * 1000, [(row[0] - start) * 1000 for row in rows], values, devices, "running")
    return window.document(window_origin(b"test", start))


COUNTERS = {"cpu_time_ns", "time_ns", "delay_ns", "write_bytes", "write_requests", "write_time_ns", "read_bytes",
            "read_requests", "receive_bytes", "transmit_bytes"}


def rollup_documents(guest, rows, resolution=FIVE_MINUTES):
    """Roll-ups of these samples, worked out one sample at a time: slow, plain and independent of the code."""
    points = {}
    for before, row in zip([None, *rows], rows, strict=False):
        point = points.setdefault(row[0] // resolution.step_s * resolution.step_s, {"samples": 0, "columns": {}})
        point["samples"] += 1
        earlier_row = dict(_flat(before)) if before is not None and row[0] not in guest.restarts else {}
        for key, value in _flat(row):
            column = point["columns"].setdefault(key, [])
            if key[2] not in COUNTERS:
                if value is not None:
                    column.append((value, 0))
            elif key in earlier_row and value >= (earlier := earlier_row[key]):
                column.append(((value - earlier) / (row[0] - before[0]), value - earlier))
    spans = {}
    for start in points:
        spans.setdefault(start // resolution.span_s * resolution.span_s, []).append(start)
    return [_rollup(guest, resolution, start, starts, points) for start, starts in sorted(spans.items())]


def _flat(row):
    yield from ((("values", "", name), value) for name, value in row[1].items())
    for group, by_device in row[2].items():
        for device, columns in by_device.items():
            yield from (((group, device, name), value) for name, value in columns.items())


def _rollup(guest, resolution, start, starts, points):
    groups = {}
    for key in {key for at in starts for key in points[at]["columns"]}:
        columns = [points[at]["columns"].get(key) or [] for at in starts]
        statistics = {
            "min": [min((v for v, _ in c), default=None) for c in columns],
            "max": [max((v for v, _ in c), default=None) for c in columns],
            "avg": [sum(v for v, _ in c) / len(c) if c else None for c in columns],
        }
        if key[2] in COUNTERS:
            statistics["increase"] = [sum(i for _, i in c) if c else None for c in columns]
        groups.setdefault(key[0], {}).setdefault(key[1], {})[key[2]] = statistics
    values = groups.pop("values", {}).get("", {})
    return RollUp(
        guest.object(), resolution, start * 1000, [(at - start) * 1000 for at in starts],
        [points[at]["samples"] for at in starts], values, groups,
    ).document()


def store(database, documents):
    """Puts documents where they belong, with the index, the object and the schema's version."""
    by_collection = {}
    for document in documents:
        resolution = RAW if "step_s" not in document else FIVE_MINUTES if document["step_s"] == 300 else HOURLY
        by_collection.setdefault(resolution.collection(document["start"]), []).append(document)
    for name, found in by_collection.items():
        database[name].create_index(list(SERIES_INDEX), name=SERIES_INDEX_NAME)
        database[name].insert_many(found)
    for key, found in _by_object(documents).items():
        database["objects"].update_one(
            {"_id": key},
            {"$set": {word: found[0][word] for word in ("kind", "name", "uuid", "host", "host_name")},
             "$min": {"first_seen": min(d["start"] for d in found)},
             "$max": {"last_seen": max(d["end"] for d in found)}},
            upsert=True,
        )
    for name in ("name", "uuid"):
        database["objects"].create_index(name)
    database["meta"].update_one({"_id": "schema"}, {"$set": {"version": 1}}, upsert=True)


def _by_object(documents):
    found = {}
    for document in documents:
        found.setdefault(document["_id"][:12], []).append(document)
    return found

"""The queries to the archive and to the audit trail: their fields, columns and parameters exist."""

from __future__ import annotations

import inspect
import re

import pytest

from collectors import COLLECTORS
from exporter import history_api
from exporter.archive.history_fields import ALIASES, HistoryFields
from exporter.control import audit_api
from tests.grafana.expressions import FILES, FOLDER, acts_targets, dashboard, history_targets

TARGETS = history_targets()
UNITS = {"ratio": "percentunit", "B": "bytes", "B/s": "binBps", "s": "s"}


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_a_query_asks_for_what_the_archive_has_in_its_unit(target) -> None:
    fields = HistoryFields(COLLECTORS)
    asked = {one["key"]: one["value"] for one in target.target["url_options"]["params"]}
    assert set(asked) <= set(history_api._PARAMETERS)
    (field,) = fields.all_named((asked["field"],))
    assert field.name == asked["field"], f"a name of the archive's own, none of {set(ALIASES)}"
    assert target.panel["fieldConfig"]["defaults"]["unit"] == UNITS[field.unit]
    assert target.target["url"] == history_api.QUERY_PATH
    assert {one["selector"] for one in target.target["columns"]} <= {"time", "device", "min", "avg", "max"}


def test_there_are_such_queries_and_their_data_sources_are_provisioned() -> None:
    assert len(TARGETS) > 8
    provisioned = [file.read_text() for file in FOLDER.glob("provisioning*/datasources/*.yml")]
    kinds = set(re.findall(r"type: (\S+)", "".join(provisioned)))
    for file in FILES:
        for variable in dashboard(file)["templating"]["list"]:
            assert variable["type"] != "datasource" or variable["query"] in kinds


def test_the_acts_of_control_are_asked_as_their_api_answers() -> None:
    (domain,) = (file for file in FILES if file.stem == "virtgauge-domain")
    (marks,) = (one["target"] for one in dashboard(domain)["annotations"]["list"] if "target" in one)
    row = next(audit_api.annotations_of([{"event": "begin", "sequence": 1, "time": "2026-11-22T10:00:00Z"}]))
    known = set(re.findall(r'query\.get\("(\w+)"', inspect.getsource(audit_api)))
    tables = [target.target for target in acts_targets()]
    assert len(tables) == 2
    for asked in (marks, *tables):
        assert asked["url"] == "/api/v1/annotations"
        assert {one["selector"] for one in asked["columns"]} <= set(row)
        assert {one["key"] for one in asked["url_options"]["params"]} <= known


def test_what_a_new_user_copies_needs_no_variable_and_no_plugin() -> None:
    """provisioning/ is copied as a whole by the README; what needs more lies beside it."""
    for file in (FOLDER / "provisioning").rglob("*.yml"):
        assert "${" not in file.read_text(), file
    (sources,) = (FOLDER / "provisioning" / "datasources").iterdir()
    assert re.findall(r"^ +type: (\S+)", sources.read_text(), re.M) == ["prometheus"]

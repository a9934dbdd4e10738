"""The page of all operations is current, and its command lines are ones that the program takes."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from exporter.command_operations import command
from exporter.control.operations import OPERATIONS
from exporter.control.request_parameters import parse_parameters
from exporter.control_reference import command_words, example_of, reference
from exporter.operation_flags import parameter_document

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_current():
    command = "run: python -m exporter.control_reference > docs/control-operations.md"
    assert (DOCS / "control-operations.md").read_text() == reference(), command


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_the_example_is_read_as_it_is_meant(operation, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wanted_reference, wanted = example_of(operation)
    Path("web1.xml").write_text(wanted.get("xml", ""))
    made = command(operation)
    context = made.make_context(operation.verb, command_words(operation)[len(operation.words):])
    assert context.params.get("common__reference") == wanted_reference
    given = parameter_document(operation.parameters, context.params)
    assert parse_parameters(operation, given) == parse_parameters(operation, wanted)


@pytest.mark.parametrize("page", ["control.md", "control-devices.md", "control-storage.md"])
def test_the_guides_command_lines_are_taken(page):
    lines = [line[2:] for line in (DOCS / page).read_text().splitlines() if line.startswith("$ virtgauge ")]
    assert len(lines) >= 4
    for line in lines:
        words = tuple(line.split()[1:])
        (operation,) = (known for known in OPERATIONS if words[: len(known.words)] == known.words)
        made = command(operation)
        context = made.make_context(operation.verb, list(words[len(operation.words) :]))
        assert isinstance(context, click.Context)
        parameter_document(operation.parameters, context.params)

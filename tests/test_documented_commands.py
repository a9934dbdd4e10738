"""Every `virtgauge` command that the README, the documents and the runbooks print is one the program takes."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from exporter.errors import VirtgaugeError
from tests import command_lines
from tests.samples import REPOSITORY

RUNBOOKS = REPOSITORY / "grafana" / "alerts" / "runbooks"
DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")), *sorted(RUNBOOKS.glob("*.md"))]


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.stem)
def test_every_command_is_taken_as_printed(file: Path) -> None:
    assert refused(file.read_text()) == []


@pytest.mark.parametrize("line", [
    "virtgauge domain strat web1", "virtgauge domain start", "virtgauge domain start web1 --fast",
    "virtgauge domain set memory web1 --memory-mib much", "virtgauge domain migrate web1 --to b --max-downtime soon",
    "virtgauge domain set vcpus web1 --vcpus 0", "virtgauge history web1 --field disk.speed",
    "virtgauge history web1 --since yesterday", "virtgauge exporter --sampling.interval=often",
    "virtgauge control pending approve it", "virtgauge dashboards export"])
def test_a_mistake_is_found(line: str) -> None:
    """The check can fail: for commands, flags, missing arguments and values."""
    assert refused(f"Do this:\n\n```\n{line} | head   # now\n```\n")


def refused(document: str) -> list[str]:
    """The commands that are not taken, each with what the program would say."""
    found = []
    for line in command_lines.commands(document):
        try:
            command_lines.check(line)
        except (AssertionError, click.ClickException, VirtgaugeError) as error:
            found.append(f"{line.text}: {error}")
    return found

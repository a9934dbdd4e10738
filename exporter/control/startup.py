"""What every process that controls begins with: its folders, and a look at what dead processes left open."""

from __future__ import annotations

from pydantic import JsonValue

from exporter.config import Settings
from exporter.control import interface_change
from exporter.control.destinations import destinations
from exporter.control.executor import Executor
from exporter.control.folders import Folders
from exporter.control.operations import by_name


def control_folders(settings: Settings) -> Folders:
    """Where control keeps its state, whence guests may be given files, and whither they may be moved."""
    images, places = settings.control.image_directory, settings.control.migration_destination
    return Folders(settings.state.directory / "control", tuple(images), destinations(places))


def recover(executor: Executor) -> list[str]:
    """Tells the trail of what dead processes left open, and has an open interface change watched again.

    A sentence for each such act: what it was, and what is there now.
    """
    explained = executor.explain_left_open(by_name())
    interface_change.resume(executor.folders, executor.trail.append)
    return [f"{act.get('operation')} of {_name(act)}: {act.get('outcome')}" for act in explained]


def _name(act: dict[str, JsonValue]) -> str:
    subject = act.get("subject")
    return f"{subject.get('kind')} {subject.get('name')}" if isinstance(subject, dict) else "something"

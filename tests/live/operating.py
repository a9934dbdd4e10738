"""Running control operations in tests: as the command line does, with an executor of the test's own."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from exporter.control.audit import Trail
from exporter.control.connection import Session
from exporter.control.destinations import Destination
from exporter.control.executor import Actor, Executor, Request
from exporter.control.folders import Folders
from exporter.control.operation import Result
from exporter.control.operations import by_name

OPERATIONS = by_name()


class Operator:
    """Asks for operations by name and plain values, confirming what needs it."""

    def __init__(
        self, uri: str, state: Path, images: tuple[Path, ...] = (), destinations: tuple[Destination, ...] = ()
    ) -> None:
        self.folders = Folders(state=state, images=images, destinations=destinations)
        self.executor = Executor(Session(uri), self.folders)
        self.trail = Trail(self.folders.trail)

    def __call__(self, operation: str, reference: str | None = None, /, **parameters: Any) -> Result:
        return self.run(operation, reference, parameters, Request(Actor("tester", "command line"), confirmed=reference))

    def dry(self, operation: str, reference: str | None = None, /, **parameters: Any) -> Result:
        return self.run(operation, reference, parameters, Request(Actor("tester", "command line"), dry_run=True))

    def run(self, name: str, reference: str | None, parameters: dict[str, Any], request: Request) -> Result:
        operation = OPERATIONS[name]
        checked = operation.parameters.model_validate_json(json.dumps(parameters))
        return self.executor.run(operation, reference, checked, request)

    def state(self, reference: str) -> str:
        return str(self("domain.show", reference).details["state"])

    def events(self) -> list[str]:
        return [str(record["event"]) for record in self.trail.records()]

    def close(self) -> None:
        self.executor.close()


def eventually(seen: Callable[[], Any], what: str, timeout_s: float = 60.0) -> Any:
    """What `seen` gives once it is true; fails with `what` after `timeout_s`."""
    end_s = time.monotonic() + timeout_s
    while not (found := seen()):
        assert time.monotonic() < end_s, f"never seen within {timeout_s:g} s: {what}"
        time.sleep(0.05)
    return found

"""The control service in a story of alerts: the shipped rules with a test's modes, and the trail that they leave."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from exporter.command_rules import SHIPPED
from exporter.control.audit import Trail
from tests.control_service import ControlService
from tests.live.operating import eventually

Record = dict[str, Any]


class Rules:
    """The shipped rules in the service's file, with the modes a test wants."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.tries = 240
        self.prometheus = ""
        """Asked before each act whether the alert still fires, where it is not empty."""
        self.set()

    def set(self, **modes: str) -> None:
        """Mode by rule, `_` for `-`; the others are off, as shipped."""
        text = SHIPPED.read_text()
        asked = "# prometheus: http://localhost:9090"
        assert asked in text
        if self.prometheus:
            text = text.replace(asked, f"prometheus: {self.prometheus}")
        text = text.replace('"localhost(:.*)?"', '"127.0.0.1:.*"')
        text = re.sub(r"every: 60s", "every: 1s", re.sub(r"cooldown: \w+", "cooldown: 0s", text))
        assert "times: 240" in text
        text = text.replace("times: 240", f"times: {self.tries}")
        smaller = (("change_mib: 256", "change_mib: 32"), ("_mib: 4096", "_mib: 64"), ("20971520", "200704"))
        for shipped, small in smaller:
            text = text.replace(shipped, small)
        for name, mode in modes.items():
            old = f"  - name: {name.replace('_', '-')}\n"
            assert old in text
            head, tail = text.split(old)
            text = head + old + tail.replace("mode: off", f"mode: {mode}", 1)
        self.file.with_suffix(".new").write_text(text)
        self.file.with_suffix(".new").replace(self.file)


class Story:
    """The service's side: its trail, from where a scene begins."""

    def __init__(self, service: ControlService, rules: Rules) -> None:
        self.service = service
        self.rules = rules
        self.trail = Trail(service.state / "control" / "audit.jsonl")
        self._from = 0

    def begin(self, **modes: str) -> None:
        """A new scene with these modes."""
        self.rules.set(**modes)
        self._from = len(self.trail.records())

    def told(self) -> list[Record]:
        """The scene's records about rules and acts."""
        return [dict(record) for record in self.trail.records()[self._from:]]

    def wait_for(self, event: str) -> Record:
        """The scene's first record of this event."""
        def seen() -> list[Record]:
            return [record for record in self.told() if record["event"] == event]

        try:
            found: list[Record] = eventually(seen, f"the record {event}", 60)
        except AssertionError as error:
            log = (self.service.folder / "log").read_text()
            raise AssertionError(f"{error}; trail: {self.told()}; log: {log[-4000:]}") from None
        return found[0]

"""The rule file in force: read at the start, and again when it has changed; a bad one leaves the earlier in force."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from exporter.control.errors import ControlError
from exporter.control.rule_reading import load_rules
from exporter.control.rules import RuleFile
from exporter.secret_files import warn_if_others_read

_log = logging.getLogger(__name__)


class RulesInForce:
    """Call it for the rules now. Any thread. Raises RuleFileError at the start, where there is no earlier one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self.mistakes = ""
        """Of the file as it is now, where they keep it from being in force."""
        self._stamp = self._seen()
        self._rules = load_rules(path)
        self._tell()

    def __call__(self) -> RuleFile:
        with self._lock:
            stamp = self._seen()
            if stamp != self._stamp:
                self._stamp = stamp
                try:
                    self._rules = load_rules(self._path)
                    self._tell()
                    self.mistakes = ""
                except ControlError as error:
                    self.mistakes = error.cause
                    _log.error("the changed rule file is wrong; the earlier one stays in force",
                               extra={"cause": str(error)})
            return self._rules

    def _seen(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _tell(self) -> None:
        modes = {rule.name: rule.mode for rule in self._rules.rules if rule.mode != "off"}
        _log.info("rules are in force", extra={"file": str(self._path), "rules": modes})
        for server in filter(None, (self._rules.prometheus, self._rules.alertmanager)):
            for secret in filter(None, (server.credentials_file, server.password_file)):
                warn_if_others_read(secret, f"what lets the rules in at {server.url}")

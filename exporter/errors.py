"""The error tree of virtgauge.

    VirtgaugeError                exit status 1
    ├── UsageError                exit status 2: the command line or a URL is wrong
    └── SettingsError             exit status 2: a setting, file or environment value is wrong

Every message names the thing, the cause and the next step; it never holds a secret.
"""

from __future__ import annotations


class VirtgaugeError(Exception):
    """Anything virtgauge reports in one line instead of a traceback."""

    exit_status = 1


class UsageError(VirtgaugeError):
    """The caller's words are wrong: an unknown flag, collector or argument."""

    exit_status = 2


class SettingsError(VirtgaugeError):
    """A setting is wrong: unknown key, wrong type, unreadable file."""

    exit_status = 2

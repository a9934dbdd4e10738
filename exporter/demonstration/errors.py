"""The error of the demonstration hypervisor."""

from __future__ import annotations

from exporter.errors import VirtgaugeError


class DemonstrationError(VirtgaugeError):
    """The private hypervisor, its guest image or one of its guests cannot be had.

    The message names the thing, the cause and the next step, in one line.
    """

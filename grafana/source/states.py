"""The states of a guest, each with its reason, as one number, in words and colours."""

from __future__ import annotations

from collectors.domain import REASONS, STATES

GREY, ORANGE, RED = "text", "orange", "red"
STATE_COLOURS = {"nostate": GREY, "running": "green", "blocked": "yellow", "paused": ORANGE, "shutdown": "purple",
                 "shutoff": GREY, "crashed": RED, "pmsuspended": "blue"}
TOLD = {"running": ("postcopy", "postcopy_failed"), "paused": REASONS[STATES.index("paused")][1:],
        "shutoff": REASONS[STATES.index("shutoff")][1:], "crashed": REASONS[STATES.index("crashed")][1:]}
"""The reasons that are told beside the state: how a guest came to run is no news, why it does not is."""
ERRORS = ("io_error", "watchdog", "crashed", "panicked", "postcopy_failed", "api_error", "failed")
"""Reasons that are nobody's wish."""


def _number(state: str, reason: str = "") -> int:
    at = STATES.index(state)
    return 100 * at + (REASONS[at].index(reason) if reason else 0)


STATE = ("max by (instance, domain) (" + " or ".join([
    *(f'libvirt_domain_state{{@domain,state="{state}"}} * {_number(state)}' for state in STATES),
    *(f'libvirt_domain_state_reason{{@domain,state="{state}",reason="{reason}"}} * {_number(state, reason)}'
      for state, reasons in TOLD.items() for reason in reasons)]) + ")")
"""100 times virDomainState, and the reason's number where it is told. A state that a guest is not in counts 0."""

STATE_WORDS = {
    **{str(_number(state)): (state, STATE_COLOURS[state]) for state in STATES},
    **{str(_number(state, reason)): (f"{state}: {reason}", RED if reason in ERRORS else STATE_COLOURS[state])
       for state, reasons in TOLD.items() for reason in reasons}}

_ERROR = "libvirt_domain_block_error_info"
DISK_ERROR = (f'max by (target_device) ({_ERROR}{{@domain,error="no_space"}} or '
              f'{_ERROR}{{@domain,error!="no_space"}} * 2)')
"""1 and 2 for what holds up a guest's disk: numbers that no state has, so that both fit into one timeline."""
DISK_ERROR_WORDS = {"1": ("no space left", RED), "2": ("I/O error", RED)}

"""The states of a guest as one number, in words and colours."""

from __future__ import annotations

from collectors.domain import STATES

STATE_COLOURS = {"nostate": "text", "running": "green", "blocked": "yellow", "paused": "orange", "shutdown": "purple",
                 "shutoff": "text", "crashed": "red", "pmsuspended": "blue"}
STATE_WORDS = {str(number): (state, STATE_COLOURS[state]) for number, state in enumerate(STATES)}
STATE = ("sum by (instance, domain) (" + " or ".join(
    f'libvirt_domain_state{{@domain,state="{state}"}} * {number}' for number, state in enumerate(STATES)) + ")")
"""virDomainState by number: each state's series is 1 in that state only."""

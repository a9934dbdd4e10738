"""Asks guest agents: seldom, within bounds, and never one that has not answered lately.

Measured on libvirt 9.0: an agent that is mute from the start costs 5 s a call (its sync times out); one that falls
mute later holds its call for ever, and with it the agent job, so that a shutdown by agent waits, too. So libvirt's
own limit for an agent's answer is set for the time of the reading, and afterwards given back to libvirt's default.
That limit is one a domain, and libvirt does not tell it: whoever sets it takes the agent's turn (``Turn``) before.
qemuAgentCommand, which takes a limit, is not used: it taints the domain. Which commands an agent has is learnt from
what libvirt says of each kind of information.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import libvirt

from .agent import AGENT
from .connection import Session
from .domain_xml import element_tree
from .fields import Constant
from .periodic import RunningDomain, Scope, UnreadError
from .snapshot import Record, Subject, Value

Turn = Callable[[str], AbstractContextManager[bool]]
"""By UUID: held while the domain's agent is asked; false where another use of it has the turn, and it is not asked.

Raises NoTurnError where nobody knows whose turn it is.
"""

ANSWER_LIMIT_S = 5
BACK_OFF_MOST_S = 900.0
FILESYSTEMS_MOST = 128
TEXT_MOST = 200
_CHANNEL = "org.qemu.guest_agent.0"
_KINDS = (1, 2, 4, 8, 16, 128)  # VIR_DOMAIN_GUEST_INFO_ USERS, OS, TIMEZONE, HOSTNAME, FILESYSTEM, LOAD
# An agent that lacks a command, and a libvirt that lacks the kind.
LACKS = (libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED, libvirt.VIR_ERR_OPERATION_UNSUPPORTED, libvirt.VIR_ERR_NO_SUPPORT,
         libvirt.VIR_ERR_INVALID_ARG, libvirt.VIR_ERR_CONFIG_UNSUPPORTED)
SILENT = tuple(getattr(libvirt, f"VIR_ERR_AGENT_{name}", -1)  # the last one is of newer versions
               for name in ("UNRESPONSIVE", "UNSYNCED", "COMMAND_TIMEOUT"))
# Another agent job (a freeze for a backup) holds the agent; the domain has stopped or gone meanwhile.
_NOT_NOW = (libvirt.VIR_ERR_OPERATION_TIMEOUT, libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_DOMAIN)
_INFO_TEXTS = (("hostname", "hostname"), ("timezone", "timezone.name"), ("os_id", "os.id"), ("os_name", "os.name"),
               ("os_version", "os.version-id"), ("kernel_release", "os.kernel-release"), ("machine", "os.machine"))


def refused(error: libvirt.libvirtError) -> bool:
    """Whether the agent answered that it does not do this, or libvirt has no such call.

    libvirt 9.0 has no code of its own for a command that an agent lacks or has switched off, where one kind alone is
    asked: it is an internal error that names the command.
    """
    code = error.get_error_code()
    return code in LACKS or (code == libvirt.VIR_ERR_INTERNAL_ERROR and "QEMU agent command" in str(error))


def holds(error: libvirt.libvirtError) -> bool:
    """Whether the agent refused since it holds (has frozen) the guest's file systems; agents before 6.2 do not say."""
    return "in frozen state" in str(error)


def fell_mute(answer: Any, took_s: float) -> bool:
    """Whether the limit passed: libvirt 9.0 then gives an empty answer, not an error, by a clock of milliseconds."""
    return not answer and took_s > ANSWER_LIMIT_S - 0.5


class NoTurnError(UnreadError):
    """Why a `Turn` could not be had, nor be said to be another's."""


class _MuteError(Exception):
    """The agent did not answer within libvirt's limit, and libvirt did not say so."""


class _HoldsError(Exception):
    """The agent holds the guest's file systems, for a backup, and has next to nothing to say meanwhile."""


@dataclass(slots=True)
class _Agent:
    """What is known of one running domain's agent."""

    lacks: set[str] = field(default_factory=set)
    gave: set[str] = field(default_factory=set)
    learnt: int | None = None  # the kinds of guest information that it has
    due_s: float = 0.0
    silent: int = 0  # times in a row
    record: Record | None = None


class AgentSource:
    """A periodic Source (see ``periodic``) over a read-write connection; each domain is a part of its own.

    A domain is asked once in ``period_s``; one whose agent does not answer, after two, four, eight periods (15 min at
    most). ``invalidate``, which an event listener calls, makes it due at once: the agent has come or gone.
    Thread-safe; the libvirt calls are the lane's.
    """

    collector = AGENT.name
    # A late call is left to itself: waiting for another's agent job (30 s) and one answer's limit, with room.
    deadline_s = 45.0

    def __init__(self, period_s: float = 60.0, clock: Callable[[], float] = time.monotonic,
                 wall_clock: Callable[[], float] = time.time, turn: Turn = lambda _uuid: nullcontext(True),
                 wants: Callable[[str, str], bool] = lambda _uuid, _name: True,
                 chosen: Callable[[str], bool] = lambda _xml: True) -> None:
        """``wants`` says by UUID and name which agents are asked at all, ``chosen`` by the domain's XML."""
        self.period_s = period_s
        self._wants = wants
        self._chosen = chosen
        self._turn = turn
        self._clock = clock
        self._wall_clock = wall_clock
        self._lock = threading.Lock()
        self._agents: dict[tuple[str, int], _Agent] = {}

    def invalidate(self, uuid: str) -> None:
        """Ask the domain's agent at the next reading, whatever was known of it. Any thread."""
        with self._lock:
            self._agents = {key: agent for key, agent in self._agents.items() if key[0] != uuid}

    def invalidate_all(self) -> None:
        """The same for every domain. Any thread."""
        with self._lock:
            self._agents = {}

    def parts(self, session: Session, _scope: Scope) -> Sequence[RunningDomain]:
        flags = libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE
        running = (RunningDomain(d.UUIDString(), d.ID(), d.name()) for d in session.connection.listAllDomains(flags))
        found = [domain for domain in running if self._wants(domain.uuid, domain.name)]
        keys = {(domain.uuid, domain.id) for domain in found}
        with self._lock:
            self._agents = {key: agent for key, agent in self._agents.items() if key in keys}
        return found

    def read(self, session: Session, part: object) -> Iterable[Record]:
        assert isinstance(part, RunningDomain)
        with self._lock:
            agent = self._agents.setdefault((part.uuid, part.id), _Agent())
        # A reading that an event hastened is for the domains of the event.
        if self._clock() >= agent.due_s:
            agent.record = None
            agent.due_s = self._clock() + 0.9 * self.period_s
            agent.record = self._asked(session, part, agent)
        return () if agent.record is None else (agent.record,)

    def _asked(self, session: Session, part: RunningDomain, agent: _Agent) -> Record | None:
        read_at_s = self._clock()
        subject = Subject("domain", (part.uuid, part.id), (("domain", part.name),))
        try:
            domain = session.connection.lookupByUUIDString(part.uuid)
            xml = domain.XMLDesc(0)
            connected = channel_connected(xml)
            if connected is None or not self._chosen(xml):
                return None
            stats: dict[str, Value] = {"agent.connected": connected, "agent.up": False}
            if connected:
                if domain.state()[0] != libvirt.VIR_DOMAIN_RUNNING:
                    return Record(subject, self.collector, {"agent.connected": True}, read_at_s)
                with self._turn(part.uuid) as ours:
                    if not ours:
                        agent.due_s = read_at_s  # it still is
                        return None
                    stats.update(self._answers(domain, agent))
        except NoTurnError:
            agent.due_s = read_at_s
            raise
        except _MuteError:
            return self._silent(agent, subject, read_at_s)
        except _HoldsError:
            agent.silent = 0
            return Record(subject, self.collector, {"agent.connected": True, "agent.up": True}, read_at_s)
        except libvirt.libvirtError as error:
            if error.get_error_code() in _NOT_NOW:
                return None
            if error.get_error_code() not in SILENT:
                raise
            return self._silent(agent, subject, read_at_s)
        agent.silent = 0
        return Record(subject, self.collector, numbers(stats), read_at_s, constants(stats))

    def _silent(self, agent: _Agent, subject: Subject, read_at_s: float) -> Record:
        agent.silent += 1
        pause_s = min(BACK_OFF_MOST_S, self.period_s * 2 ** min(agent.silent, 20))
        agent.due_s = self._clock() + max(self.period_s, pause_s)
        return Record(subject, self.collector, {"agent.connected": True, "agent.up": False}, read_at_s)

    def _answers(self, domain: Any, agent: _Agent) -> dict[str, Value]:
        with suppress(libvirt.libvirtError, AttributeError):  # libvirt before 5.10
            domain.agentSetResponseTimeout(ANSWER_LIMIT_S, 0)
        try:
            found = self._information(domain, agent)
            found["agent.up"] = True
            before_s = self._wall_clock()
            told = self._had(agent, "time", domain.getTime)
            if told:
                # Whatever the way there and back took is shared between both ways.
                host_s = (before_s + self._wall_clock()) / 2
                found["time.drift"] = told["seconds"] + told["nseconds"] / 1e9 - host_s
            vcpus = self._had(agent, "vcpus", domain.guestVcpus)
            if vcpus:
                found["vcpus.online"] = count_of_list(str(vcpus.get("online", "")))
            return found
        finally:
            with suppress(libvirt.libvirtError, AttributeError):
                domain.agentSetResponseTimeout(libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK, 0)

    def _information(self, domain: Any, agent: _Agent) -> dict[str, Value]:
        """All that the agent has in one call; kind by kind the first time, and where the one call lacks something."""
        if agent.learnt:
            try:
                return dict(self._in_time(partial(domain.guestInfo, agent.learnt, 0)))
            except libvirt.libvirtError as error:
                if not refused(error):
                    raise
        found: dict[str, Value] = {}
        learnt = 0
        for kind in _KINDS:
            answer = self._had(agent, f"kind {kind}", partial(domain.guestInfo, kind, 0))
            if answer is not None:
                found.update(answer)
            if f"kind {kind}" not in agent.lacks:
                learnt |= kind
        agent.learnt = learnt
        return found

    def _had(self, agent: _Agent, name: str, call: Callable[[], Any]) -> Any:
        """The call's answer; None where it is refused, from then on where the agent or libvirt never gave it."""
        if name in agent.lacks:
            return None
        try:
            answer = self._in_time(call)
        except (libvirt.libvirtError, AttributeError) as error:
            if isinstance(error, libvirt.libvirtError):
                if not refused(error):
                    raise
                if holds(error):
                    raise _HoldsError from error
            # What it gave before it has: one bad mount fails a command, and an agent that holds need not say so.
            if name not in agent.gave:
                agent.lacks.add(name)
            return None
        agent.gave.add(name)
        return answer

    def _in_time(self, call: Callable[[], Any]) -> Any:
        started_s = self._clock()
        answer = call()
        if fell_mute(answer, self._clock() - started_s):
            raise _MuteError
        return answer


def channel_connected(xml: str) -> bool | None:
    """Whether the guest's end of the agent's channel is open; None where the domain has no such channel."""
    for target in element_tree(xml).iterfind("devices/channel/target"):
        if target.get("name") == _CHANNEL:
            return target.get("state") == "connected"
    return None


def count_of_list(text: str) -> int:
    """How many numbers a list such as ``0-2,4`` names."""
    count = 0
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        count += int(last or first) - int(first) + 1
    return count


def numbers(told: dict[str, Value]) -> dict[str, Value]:
    """What the Fields read, filesystems one a mount point: the guest decides what it says, and how much."""
    found = {key: value for key, value in told.items() if not key.startswith(("fs.", "user.", "os.", "disk.", "if."))}
    if "user.count" in told:
        found["user.count"] = told["user.count"]
    for place, (mountpoint, number) in enumerate(_filesystems(told).items()):
        found[f"fs.{place}.mountpoint"] = mountpoint
        for key in ("total-bytes", "used-bytes"):
            if f"fs.{number}.{key}" in told:
                found[f"fs.{place}.{key}"] = told[f"fs.{number}.{key}"]
    return found


def constants(told: dict[str, Value]) -> tuple[Constant, ...]:
    """The constant series: what the guest says it is, and what its filesystems are."""
    found = []
    texts = tuple((label, _short(told.get(key, ""))) for label, key in _INFO_TEXTS)
    if any(text for _, text in texts):
        found.append(Constant("libvirt_domain_agent_info", texts))
    for mountpoint, number in _filesystems(told).items():
        device, kind = (_short(told.get(f"fs.{number}.{key}", "")) for key in ("name", "fstype"))
        found.append(Constant("libvirt_domain_agent_filesystem_info",
                              (("mountpoint", mountpoint), ("device", device), ("fstype", kind))))
    return tuple(found)


def _filesystems(told: dict[str, Value]) -> dict[str, int]:
    """The number of each filesystem under its mount point; of two mounted over each other, the later."""
    count = told.get("fs.count", 0)
    most = min(int(count), FILESYSTEMS_MOST) if isinstance(count, int) else 0
    return {_short(told[key]): number for number in range(most) if (key := f"fs.{number}.mountpoint") in told}


def _short(value: Value) -> str:
    return str(value)[:TEXT_MOST]

"""What agents tell, and when they are asked: answers as qemu-ga 7.2 gave them through libvirt 9.0.

Real agents, present, mute and gone, are in tests/live/test_guest_agent.py. Here is what needs hours, a newer libvirt or
a hostile guest.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import libvirt
import pytest

from collectors.agent import AGENT
from collectors.agent_reading import BACK_OFF_MOST_S, FILESYSTEMS_MOST, AgentSource, channel_connected, count_of_list
from collectors.periodic import RunningDomain, Scope
from collectors.snapshot import Record
from tests.samples import builder, series, snapshot

USERS, OS, TIMEZONE, HOSTNAME, FILESYSTEM, LOAD = 1, 2, 4, 8, 16, 128
ANSWERS: dict[int, dict[str, Any]] = {
    USERS: {"user.count": 1, "user.0.name": "root", "user.0.login-time": 1000},
    OS: {"os.id": "debian", "os.name": "Debian GNU/Linux", "os.version-id": "12", "os.machine": "x86_64",
         "os.kernel-release": "6.1.0-56-cloud-amd64"},
    TIMEZONE: {"timezone.name": "UTC", "timezone.offset": 0},
    HOSTNAME: {"hostname": "inside"},
    FILESYSTEM: {"fs.count": 2, "fs.0.name": "vda1", "fs.0.mountpoint": "/", "fs.0.fstype": "ext4",
                 "fs.0.total-bytes": 1000, "fs.0.used-bytes": 250, "fs.0.disk.count": 1, "fs.0.disk.0.alias": "vda",
                 "fs.1.name": "sr0", "fs.1.mountpoint": "/cd", "fs.1.fstype": "iso9660"},
    # From libvirt's documentation (11.2); no such libvirt was at hand.
    LOAD: {"load.1m": 0.5, "load.5m": 0.25, "load.15m": 0.125},
}  # fmt: skip
DISABLED = (
    "internal error: unable to execute QEMU agent command 'guest-get-timezone':"
    " Command guest-get-timezone has been disabled"
)
HELD = f"{DISABLED}: the agent is in frozen state"
CHANNEL = "<domain><devices><channel><target name='org.qemu.guest_agent.0' state='{}'/></channel></devices></domain>"


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Domain:
    """A domain object as the binding has it, with an agent that can be told how to behave."""

    def __init__(self, clock: Clock, lacks: int = 0) -> None:
        self.clock = clock
        self.lacks = lacks
        self.lack_code = libvirt.VIR_ERR_INVALID_ARG
        self.asked: list[int] = []
        self.limits: list[int] = []
        self.connected = True
        self.fails: int | None = None
        self.hangs = False
        self.hangs_s = 5.0
        self.paused = False
        self.holds = ""
        self.has_time = True
        self.answers = dict(ANSWERS)

    def XMLDesc(self, _flags: int) -> str:  # noqa: N802 - the binding's name
        return CHANNEL.format("connected" if self.connected else "disconnected")

    def UUIDString(self) -> str:  # noqa: N802 - the binding's name
        return "u-1"

    def ID(self) -> int:  # noqa: N802 - the binding's name
        return 7

    def name(self) -> str:
        return "web"

    def state(self) -> list[int]:
        return [libvirt.VIR_DOMAIN_PAUSED if self.paused else libvirt.VIR_DOMAIN_RUNNING, 1]

    def agentSetResponseTimeout(self, limit_s: int, _flags: int) -> None:  # noqa: N802 - the binding's name
        self.limits.append(limit_s)

    def guestInfo(self, kinds: int, _flags: int) -> dict[str, Any]:  # noqa: N802 - the binding's name
        self.asked.append(kinds)
        if self.hangs:
            self.clock.now_s += self.hangs_s  # measured: libvirt 9.0 then gives an empty answer
            return {}
        if self.fails is not None:
            raise error(self.fails)
        if self.holds and kinds.bit_count() > 1:
            return {}  # measured: libvirt 9.0 tells only where one kind is asked
        self._refuse_while_held()
        if kinds & self.lacks:
            raise error(self.lack_code)
        return {key: value for kind in self.answers if kind & kinds for key, value in self.answers[kind].items()}

    def _refuse_while_held(self) -> None:
        if self.holds:
            raise error(libvirt.VIR_ERR_INTERNAL_ERROR, self.holds)

    def getTime(self) -> dict[str, int]:  # noqa: N802 - the binding's name
        self._refuse_while_held()
        if not self.has_time:
            raise error(libvirt.VIR_ERR_INTERNAL_ERROR)
        return {"seconds": 4999, "nseconds": 500_000_000}

    def guestVcpus(self) -> dict[str, str]:  # noqa: N802 - the binding's name
        self._refuse_while_held()
        return {"vcpus": "0-3", "online": "0-1,3", "offlinable": "1-3"}


def error(code: int, text: str = DISABLED) -> libvirt.libvirtError:
    # libvirt 9.0 has no code for a command that the agent switched off: only the text tells.
    text = text if code == libvirt.VIR_ERR_INTERNAL_ERROR else "scripted"
    made = libvirt.libvirtError(text)
    made.err = (code, libvirt.VIR_FROM_QEMU, text, 2, None, None, None, -1, -1)
    return made


class Session:
    """A lane's session: its connection knows one domain."""

    def __init__(self, domain: Domain) -> None:
        self.connection = self
        self.domain = domain

    def listAllDomains(self, _flags: int) -> list[Domain]:  # noqa: N802 - the binding's name
        return [self.domain]

    def lookupByUUIDString(self, _uuid: str) -> Domain:  # noqa: N802 - the binding's name
        return self.domain


PART = RunningDomain("u-1", 7, "web")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def source(clock: Clock) -> AgentSource:
    return AgentSource(60.0, clock, lambda: 5000.0)


def read(source: AgentSource, domain: Domain) -> list[Record]:
    return list(source.read(Session(domain), PART))  # type: ignore[arg-type]


def page(records: list[Record]) -> dict[str, float]:
    return series(builder([AGENT]).batch(snapshot(*records)))


def test_every_declared_metric_is_shown_with_its_labels(source: AgentSource, clock: Clock) -> None:
    found = page(read(source, Domain(clock)))
    assert found == {
        'libvirt_domain_agent_connected{domain="web"}': 1,
        'libvirt_domain_agent_up{domain="web"}': 1,
        'libvirt_domain_agent_info{domain="web",hostname="inside",timezone="UTC",os_id="debian",'
        'os_name="Debian GNU/Linux",os_version="12",kernel_release="6.1.0-56-cloud-amd64",machine="x86_64"}': 1,
        'libvirt_domain_agent_users{domain="web"}': 1,
        'libvirt_domain_agent_filesystem_size_bytes{domain="web",mountpoint="/"}': 1000,
        'libvirt_domain_agent_filesystem_used_bytes{domain="web",mountpoint="/"}': 250,
        'libvirt_domain_agent_filesystem_info{domain="web",mountpoint="/",device="vda1",fstype="ext4"}': 1,
        'libvirt_domain_agent_filesystem_info{domain="web",mountpoint="/cd",device="sr0",fstype="iso9660"}': 1,
        'libvirt_domain_agent_load1{domain="web"}': 0.5,
        'libvirt_domain_agent_load5{domain="web"}': 0.25,
        'libvirt_domain_agent_load15{domain="web"}': 0.125,
        'libvirt_domain_agent_time_drift_seconds{domain="web"}': -0.5,
        'libvirt_domain_agent_vcpus_online{domain="web"}': 3,
    }
    assert {name.partition("{")[0] for name in found} == {d.name for d in AGENT.declarations}


def test_an_agent_that_the_filters_leave_out_is_not_asked(clock: Clock) -> None:
    domain = Domain(clock)

    def parts(source: AgentSource) -> Sequence[RunningDomain]:
        return source.parts(Session(domain), Scope())  # type: ignore[arg-type]

    assert list(parts(AgentSource(60.0, clock, wants=lambda _uuid, name: name != "db"))) == [PART]
    assert list(parts(AgentSource(60.0, clock, wants=lambda uuid, _name: uuid != PART.uuid))) == []
    seen: list[str] = []
    assert read(AgentSource(60.0, clock, chosen=lambda xml: bool(seen.append(xml))), domain) == []  # type: ignore[func-returns-value]
    assert (seen, domain.asked, domain.limits) == ([domain.XMLDesc(0)], [], [])


@pytest.mark.parametrize("code", [libvirt.VIR_ERR_INVALID_ARG, libvirt.VIR_ERR_INTERNAL_ERROR])
def test_what_the_agent_lacks_is_asked_once_and_the_rest_in_one_call(
    source: AgentSource, clock: Clock, code: int
) -> None:
    domain = Domain(clock, lacks=LOAD | TIMEZONE)
    domain.lack_code = code
    read(source, domain)
    assert domain.asked == [USERS, OS, TIMEZONE, HOSTNAME, FILESYSTEM, LOAD]
    domain.asked.clear()
    clock.now_s += 60
    found = page(read(source, domain))
    assert domain.asked == [USERS | OS | HOSTNAME | FILESYSTEM]
    assert 'libvirt_domain_agent_users{domain="web"}' in found
    # libvirt's own limit holds while we ask, and no longer.
    assert domain.limits == [5, libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK] * 2


@pytest.mark.parametrize("mute", ["86", "hangs"])
def test_a_mute_agent_is_asked_less_and_less_until_an_event_tells_of_it(
    source: AgentSource, clock: Clock, mute: str
) -> None:
    domain = Domain(clock)
    domain.hangs = mute == "hangs"
    domain.fails = libvirt.VIR_ERR_AGENT_UNRESPONSIVE
    down = {'libvirt_domain_agent_connected{domain="web"}': 1, 'libvirt_domain_agent_up{domain="web"}': 0}
    times = []
    end_s = clock.now_s + 3 * 3600
    while clock.now_s < end_s:
        before = len(domain.asked)
        assert page(read(source, domain)) == down
        if len(domain.asked) > before:
            assert len(domain.asked) == before + 1  # the first silence ends the reading
            times.append(clock.now_s)
        clock.now_s += 10
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert pauses == sorted(pauses)
    assert 100 < pauses[0] < 140
    assert BACK_OFF_MOST_S <= pauses[-1] < BACK_OFF_MOST_S + 20
    domain.hangs, domain.fails = False, None
    assert page(read(source, domain)) == down
    source.invalidate(PART.uuid)
    assert page(read(source, domain))['libvirt_domain_agent_up{domain="web"}'] == 1


def test_libvirts_clock_may_be_ahead_of_ours(source: AgentSource, clock: Clock) -> None:
    domain = Domain(clock)
    domain.hangs, domain.hangs_s = True, 4.999
    assert page(read(source, domain))['libvirt_domain_agent_up{domain="web"}'] == 0


def test_what_is_not_asked(source: AgentSource, clock: Clock) -> None:
    domain = Domain(clock)
    domain.connected = False
    assert page(read(source, domain)) == {
        'libvirt_domain_agent_connected{domain="web"}': 0, 'libvirt_domain_agent_up{domain="web"}': 0}  # fmt: skip
    source.invalidate_all()
    domain.connected, domain.paused = True, True
    assert page(read(source, domain)) == {'libvirt_domain_agent_connected{domain="web"}': 1}
    assert domain.asked == []
    source.invalidate_all()
    domain.paused, domain.fails = False, libvirt.VIR_ERR_OPERATION_TIMEOUT  # another holds the agent
    assert read(source, domain) == []
    source.invalidate_all()
    domain.fails = libvirt.VIR_ERR_OPERATION_FAILED
    with pytest.raises(libvirt.libvirtError):
        read(source, domain)
    assert channel_connected("<domain><devices><channel/></devices></domain>") is None


@pytest.mark.parametrize("text", [HELD, DISABLED], ids=["since 6.2", "before"])
def test_an_agent_that_holds_the_file_systems_has_what_it_had(source: AgentSource, clock: Clock, text: str) -> None:
    """While a backup has them frozen, it answers next to nothing; what it gave before comes back afterwards."""
    domain = Domain(clock)
    before = page(read(source, domain))
    clock.now_s += 60
    domain.holds = text
    assert page(read(source, domain)) == {
        'libvirt_domain_agent_connected{domain="web"}': 1, 'libvirt_domain_agent_up{domain="web"}': 1}  # fmt: skip
    clock.now_s += 60
    domain.holds = ""
    assert page(read(source, domain)) == before


def test_what_fails_for_a_while_costs_its_own_series_only(source: AgentSource, clock: Clock) -> None:
    """A mount that cannot be looked at, say: libvirt 9.0 then refuses the one call for all kinds, too."""
    domain = Domain(clock)
    before = page(read(source, domain))
    domain.lack_code = libvirt.VIR_ERR_INTERNAL_ERROR
    domain.lacks, domain.has_time = FILESYSTEM, False
    for _ in range(2):
        clock.now_s += 60
        lost = before.keys() - page(read(source, domain)).keys()
        assert len(lost) == 5
        assert all("_filesystem_" in name or "_time_drift_" in name for name in lost)
    domain.lacks, domain.has_time = 0, True
    clock.now_s += 60
    assert page(read(source, domain)) == before


def test_an_agent_that_holds_the_file_systems_when_it_is_first_asked(source: AgentSource, clock: Clock) -> None:
    domain = Domain(clock)
    domain.holds = HELD
    read(source, domain)
    domain.holds = ""
    clock.now_s += 60
    assert page(read(source, domain))['libvirt_domain_agent_users{domain="web"}'] == 1


def test_a_domain_that_ended_is_forgotten(source: AgentSource, clock: Clock) -> None:
    class Listing(Session):
        listed: tuple[Any, ...] = ()

        def listAllDomains(self, _flags: int) -> tuple[Any, ...]:  # noqa: N802 - the binding's name
            return self.listed

    domain = Domain(clock)
    read(source, domain)
    assert source.parts(Listing(domain), Scope()) == []  # type: ignore[arg-type]
    read(source, domain)
    assert domain.asked.count(USERS) == 2


def test_a_hostile_guest_costs_its_own_series_only(source: AgentSource, clock: Clock) -> None:
    domain = Domain(clock)
    many: dict[str, Any] = {"fs.count": 10**6}
    for number in range(1000):
        many |= {f"fs.{number}.mountpoint": f"/{number}", f"fs.{number}.total-bytes": 1}
    many |= {"fs.1.mountpoint": "/0", "fs.1.total-bytes": 2, "fs.2.mountpoint": '"\n\\' + "x" * 5000,
             "fs.3.total-bytes": -5}  # fmt: skip
    domain.answers |= {FILESYSTEM: many, HOSTNAME: {"hostname": 'in"side\n# TYPE evil counter'},
                       USERS: {"user.count": "many"}}  # fmt: skip
    found = page(read(source, domain))
    sizes = [name for name in found if "size_bytes" in name]
    assert len(sizes) == FILESYSTEMS_MOST - 2  # one mounted over another, one of negative size
    assert found['libvirt_domain_agent_filesystem_size_bytes{domain="web",mountpoint="/0"}'] == 2
    assert max(map(len, sizes)) < 400
    assert not [name for name in found if "\n" in name]
    assert 'libvirt_domain_agent_users{domain="web"}' not in found
    domain.answers[FILESYSTEM] = {"fs.count": "two"}
    clock.now_s += 60
    assert not [name for name in page(read(source, domain)) if "size_bytes" in name]


@pytest.mark.parametrize(("text", "count"), [("", 0), ("0", 1), ("0-3", 4), ("0-1,3", 3)])
def test_count_of_list(text: str, count: int) -> None:
    assert count_of_list(text) == count

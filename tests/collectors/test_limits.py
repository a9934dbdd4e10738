"""Tests of the limits out of a domain's XML."""

from __future__ import annotations

from collectors.domain_xml import parse
from collectors.limits import LIMITS

XML = """<domain type='kvm' id='1'><name>d</name><uuid>u</uuid><vcpu>2</vcpu>
<cputune><shares>512</shares>{cpu}<vcpupin vcpu='0' cpuset='0-3,^2'/></cputune>
<memtune>{memory}</memtune><devices>{devices}</devices></domain>"""


def found(cpu: str = "", memory: str = "", devices: str = "") -> dict[str, float]:
    definition = parse(XML.format(cpu=cpu, memory=memory, devices=devices))
    return {" ".join([c.name.removeprefix("libvirt_domain_"), *(f"{k}={v}" for k, v in c.labels)]): c.value
            for c in definition.limits}


OWN = {"limit_cpu_shares": 512, "vcpu_affinity_info vcpu=0 cpuset=0-3,^2": 1}


def test_quota_by_period_is_cores_and_none_is_absent() -> None:
    assert found() == OWN
    assert found("<period>50000</period><quota>25000</quota><global_quota>200000</global_quota>"
                 "<emulator_quota>-1</emulator_quota><iothread_quota>17592186044415000</iothread_quota>") == {
        **OWN, "limit_vcpu_cores": 0.5, "limit_cores": 2.0}


def test_the_default_affinity_holds_for_each_vcpu_that_has_none_of_its_own() -> None:
    xml = XML.format(cpu="", memory="", devices="")
    limits = parse(xml.replace("<vcpu>2", "<vcpu placement='static' cpuset='4-7'>3")).limits
    assert {c.labels for c in limits if "affinity" in c.name} == {
        (("vcpu", "0"), ("cpuset", "0-3,^2")), (("vcpu", "1"), ("cpuset", "4-7")), (("vcpu", "2"), ("cpuset", "4-7"))}
    nothing = parse(xml.replace("<vcpu>2", "<vcpu cpuset='4-7'>x").replace("vcpu='0'", "vcpu='²'")).limits
    assert [c for c in nothing if "affinity" in c.name] == []


def test_memory_limits_are_bytes_and_unlimited_is_absent() -> None:
    assert found(memory="<hard_limit unit='KiB'>1024</hard_limit><soft_limit unit='G'>1</soft_limit>"
                 "<swap_hard_limit unit='KiB'>9007199254740991</swap_hard_limit><min_guarantee>x</min_guarantee>") == {
        **OWN, "limit_memory_hard_bytes": 1 << 20, "limit_memory_soft_bytes": 1 << 30}


def test_bandwidth_is_the_guests_view_by_device() -> None:
    nic = ("<interface type='bridge'><target dev='tap0'/><bandwidth><inbound average='100' peak='200' burst='10'/>"
           "<outbound average='50'/></bandwidth></interface>")
    device = "target_device=tap0"
    assert found(devices=nic + nic) == {
        **OWN, f"interface_limit_receive_average_bytes_per_second {device}": 100_000,
        f"interface_limit_receive_peak_bytes_per_second {device}": 200_000,
        f"interface_limit_receive_burst_bytes {device}": 10_240,
        f"interface_limit_transmit_average_bytes_per_second {device}": 50_000}


def test_all_that_can_be_found_is_declared() -> None:
    everything = parse(XML.format(
        cpu="".join(f"<{p}quota>1000</{p}quota>" for p in ("", "global_", "emulator_", "iothread_")),
        memory="".join(f"<{e}>5</{e}>" for e in ("hard_limit", "soft_limit", "swap_hard_limit", "min_guarantee")),
        devices="<interface><target dev='t'/><bandwidth>" + "".join(
            f"<{way} average='1' peak='1' burst='1'/>" for way in ("inbound", "outbound"))
        + "</bandwidth></interface>")).limits
    assert {c.name for c in everything} == {d.name for d in LIMITS.declarations}

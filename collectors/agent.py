"""What the guest agent tells of the inside of a guest.

Asking an agent needs a read-write connection, so these series are not on the exporter's page but on that of
`virtgauge control serve`, which reads them by ``agent_reading``.
"""

from __future__ import annotations

from .fields import Collector, Field, Info, Kind

_LOAD_SINCE = "11.2.0"


def _filesystem(source: str, name: str, text: str) -> Field:
    return Field(f"fs.<n>.{source}", f"libvirt_domain_agent_filesystem_{name}", Kind.GAUGE,
                 f"{text} (libvirt fs.<n>.{source}, bytes).", label="mountpoint", label_key="fs.<n>.mountpoint",
                 since="5.7.0")


def _load(minutes: int) -> Field:
    return Field(f"load.{minutes}m", f"libvirt_domain_agent_load{minutes}", Kind.GAUGE,
                 f"Number of processes that want to run in the guest, mean of {minutes} minute{'s' * (minutes > 1)}; "
                 f"guest agent 10.0 and later (libvirt load.{minutes}m, count).", since=_LOAD_SINCE)


AGENT = Collector(
    name="agent",
    help="What the guest agent tells: filesystems, load, users, operating system, clock, vCPUs.",
    declarations=(
        Field("agent.connected", "libvirt_domain_agent_connected", Kind.GAUGE,
              "1 if the guest has its end of the agent's channel open, 0 if not; absent without a channel "
              "(domain XML <target state>, agent.connected, boolean).", since="1.2.8"),
        Field("agent.up", "libvirt_domain_agent_up", Kind.GAUGE,
              "1 if the agent answered when it was last asked, 0 if not (virDomainGetGuestInfo, agent.up, boolean).",
              since="5.7.0"),
        Info("libvirt_domain_agent_info",
             "Always 1; host name, time zone and operating system as the guest tells them (libvirt hostname, "
             "timezone.name, os.*, text).",
             ("domain", "hostname", "timezone", "os_id", "os_name", "os_version", "kernel_release", "machine"),
             source="os.*", since="5.7.0"),
        Field("user.count", "libvirt_domain_agent_users", Kind.GAUGE,
              "Number of users logged in to the guest (libvirt user.count, count).", since="5.7.0"),
        _filesystem("total-bytes", "size_bytes", "Size of a filesystem of the guest"),
        _filesystem("used-bytes", "used_bytes", "Used bytes of a filesystem of the guest"),
        Info("libvirt_domain_agent_filesystem_info",
             "Always 1; device and type of a filesystem of the guest (libvirt fs.<n>.name, fs.<n>.fstype, text).",
             ("domain", "mountpoint", "device", "fstype"), source="fs.<n>.name", since="5.7.0"),
        _load(1), _load(5), _load(15),
        Field("time.drift", "libvirt_domain_agent_time_drift_seconds", Kind.GAUGE,
              "Guest's clock less this host's; negative where the guest's is behind (virDomainGetTime, time.drift, "
              "seconds).", signed=True, since="1.2.5"),
        Field("vcpus.online", "libvirt_domain_agent_vcpus_online", Kind.GAUGE,
              "Number of vCPUs that the guest's kernel uses (virDomainGetGuestVcpus, vcpus.online, count).",
              since="2.0.0"),
    ),
    default=False,
)

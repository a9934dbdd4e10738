"""Two private hypervisors joined by a line, for migrations: the same machine, two hosts as libvirt sees it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import libvirt

from exporter.control.destinations import Destination
from exporter.demonstration.private_hypervisor import PrivateHypervisor
from exporter.demonstration.programs import run_program
from tests.exporter.certificates import authority, signed
from tests.live.sector_guests import SectorGuest, sector_xml

LINE = "migrate0"
_ADDRESSES = ("10.78.0.1", "10.78.0.2")


@dataclass(frozen=True)
class HostPair:
    """`here` is the source, `there` the destination; each has the other as a destination of its name."""

    here: PrivateHypervisor
    there: PrivateHypervisor

    @property
    def to_there(self) -> Destination:
        return Destination("there", self.there.uri, f"tcp://{_ADDRESSES[1]}")

    @property
    def to_here(self) -> Destination:
        return Destination("here", self.here.uri, f"tcp://{_ADDRESSES[0]}")

    def running_on(self, uuid: str) -> list[str]:
        """The hosts where the guest's CPUs run; one whose libvirtd is away does not tell."""
        return [name for name, host in (("here", self.here), ("there", self.there)) if _is_running(host, uuid)]

    def defined_on(self, uuid: str) -> list[str]:
        """The hosts that hold a definition of the guest."""
        return [name for name, host in (("here", self.here), ("there", self.there)) if _is_persistent(host, uuid)]

    def remove(self, uuid: str) -> None:
        """Ends the guest on both hosts and drops its definitions."""
        for host in (self.here, self.there):
            with _connected(host) as connection:
                for domain in connection.listAllDomains(0):
                    if domain.UUIDString() == uuid:
                        _remove(domain)


    def give_certificates(self, folder: Path) -> None:
        """What QEMU needs for an encrypted migration, on both; `folder` is for the authority. Restarts the daemons."""
        authority(folder)
        for host, address in zip((self.here, self.there), _ADDRESSES, strict=True):
            pki = host.folder / "lib" / "pki"
            pki.mkdir()
            shutil.copy(folder / "ca.pem", pki / "ca-cert.pem")
            for role in ("server", "client"):
                signed(folder, role, f"IP:{address}")
                shutil.copy(folder / f"{role}.pem", pki / f"{role}-cert.pem")
                shutil.copy(folder / f"{role}.key", pki / f"{role}-key.pem")
            with (host.folder / "etc" / "qemu.conf").open("a") as settings:
                settings.write('migrate_tls_x509_cert_dir = "/var/lib/libvirt/pki"\n')
            host.stop_daemon()
            host.start_daemon()


@contextmanager
def host_pair() -> Iterator[HostPair]:
    """Both, started and joined; ended afterwards."""
    with PrivateHypervisor() as here, PrivateHypervisor() as there:
        enter = ["nsenter", f"--net=/proc/{here.network_pid}/ns/net"]
        peer = ["peer", "name", LINE, "netns", str(there.network_pid)]
        run_program([*enter, "ip", "link", "add", LINE, "type", "veth", *peer], timeout_s=15)
        for host, address in zip((here, there), _ADDRESSES, strict=True):
            host.run("ip", "address", "add", f"{address}/24", "dev", LINE)
            host.run("ip", "link", "set", LINE, "up")
            # libvirt's own folder is each host's own: a disk in it is local, and has the same path on the other.
            (host.folder / "lib" / "images").mkdir(exist_ok=True)
        yield HostPair(here, there)


def define_on(host: PrivateHypervisor, name: str, sector: bytes, xml_change: tuple[str, str] = ("", "")) -> SectorGuest:
    """A persistent guest of one sector, not started; a piece of its XML may be exchanged for another."""
    xml, guest = sector_xml(host, name, sector)
    old, new = xml_change
    assert old in xml
    with _connected(host) as connection:
        connection.defineXML(xml.replace(old, new) if old else xml)
    return guest


@contextmanager
def _connected(host: PrivateHypervisor) -> Iterator[libvirt.virConnect]:
    connection = libvirt.open(host.uri)
    try:
        yield connection
    finally:
        connection.close()


def _remove(domain: libvirt.virDomain) -> None:
    persistent = domain.isPersistent()
    if domain.isActive():
        domain.destroy()
    if persistent:
        domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE)


def _is_running(host: PrivateHypervisor, uuid: str) -> bool:
    try:
        with _connected(host) as connection:
            return bool(connection.lookupByUUIDString(uuid).state()[0] == libvirt.VIR_DOMAIN_RUNNING)
    except libvirt.libvirtError:
        return False


def _is_persistent(host: PrivateHypervisor, uuid: str) -> bool:
    try:
        with _connected(host) as connection:
            return bool(connection.lookupByUUIDString(uuid).isPersistent())
    except libvirt.libvirtError:
        return False

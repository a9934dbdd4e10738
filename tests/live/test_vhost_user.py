"""An interface on a vhost-user switch: the host's kernel does not count it, its switch does, and libvirt asks that."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import libvirt
import pytest

from exporter.demonstration.private_hypervisor import PrivateHypervisor
from tests.live.conftest import StartExporter
from tests.live.fleet import Fleet
from tests.live.operating import eventually
from tests.live.scraping import Page, Scraper

GET_FEATURES, GET_VRING_BASE = 1, 11
FEATURES = 1 << 32  # virtio 1.0, and nothing of vhost-user's own
# What the switch sent to the guest, and what it had from it.
COUNTED = {"tx_bytes": 2222, "tx_packets": 22, "tx_errors": 2, "tx_dropped": 4,
           "rx_bytes": 1111, "rx_packets": 11, "rx_errors": 1, "rx_dropped": 3}
OVS = """#!/bin/sh
case "$*" in
*statistics*) echo asked >> '{log}'; echo '{counted}' ;;
*) echo port0 ;;
esac
"""
NIC = ("<interface type='vhostuser'><mac address='52:54:00:aa:00:01'/><source type='unix' path='{path}' mode='client'/>"
       "<model type='virtio'/><rom enabled='no'/></interface></devices>")
SHARED = "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking><vcpu"


class Switch:
    """Takes a QEMU's connections and answers as much as it needs to start."""

    def __init__(self, path: Path) -> None:
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self._listening.accept()[0],), daemon=True).start()

    @staticmethod
    def _serve(line: socket.socket) -> None:
        with line, suppress(OSError):
            while len(head := socket.recv_fds(line, 12, 16)) and len(head[0]) == 12:
                for file in head[1]:
                    os.close(file)
                request, _, size = struct.unpack("<III", head[0])
                body = line.recv(size, socket.MSG_WAITALL) if size else b""
                if request in (GET_FEATURES, GET_VRING_BASE):
                    value = FEATURES if request == GET_FEATURES else struct.unpack("<I", body[:4])[0]
                    line.sendall(struct.pack("<IIIQ", request, 5, 8, value))


@pytest.fixture
def switched_hypervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PrivateHypervisor]:
    """A hypervisor whose Open vSwitch command tells what was counted at the only port there is."""
    command = tmp_path / "ovs-vsctl"
    counted = json.dumps(["map", [list(pair) for pair in COUNTED.items()]])
    command.write_text(OVS.format(counted=counted, log=tmp_path / "asked"))
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with PrivateHypervisor() as private:
        yield private


@pytest.fixture
def port(switched_hypervisor: PrivateHypervisor) -> Iterator[Path]:
    """The port's socket."""
    path = switched_hypervisor.folder / "run" / "port0.sock"
    made = Switch(path)
    yield path
    made.close()


def counters(page: Page, device: str) -> dict[str, float]:
    stem = "libvirt_domain_interface_stats_"
    return {name.removeprefix(stem): value for (name, pairs), value in page.values.items()
            if name.startswith(stem) and ("target_device", device) in pairs}


@pytest.fixture
def switched(switched_hypervisor: PrivateHypervisor, port: Path) -> str:
    """A guest with a tap and an interface on the switch."""
    xml = Fleet(switched_hypervisor).xml("switched").replace("</devices>", NIC.format(path=port))
    connection = libvirt.open(switched_hypervisor.uri)
    try:
        connection.createXML(xml.replace("<vcpu", SHARED, 1), 0)
    finally:
        connection.close()
    return "switched"


def tap_of(page: Page) -> str:
    tap, = page.labelled("libvirt_domain_interface_info", "target_device") - {"port0"}
    return tap


@pytest.mark.parametrize("kernel", ["auto", "off"])
def test_by_default_nobody_asks_the_switch(switched_hypervisor: PrivateHypervisor, switched: str, tmp_path: Path,
                                           start_exporter: StartExporter, kernel: str) -> None:
    flags = ["--sampling.max-age=0s", f"--sampling.kernel={kernel}"]
    scraper = Scraper(start_exporter(switched_hypervisor.read_only_uri, flags), timeout_s=10)
    eventually(lambda: "port0" in scraper.scrape().labelled("libvirt_domain_interface_info", "target_device"),
               "what it is", 60)
    for _ in range(3):
        page = scraper.scrape()
    assert not (tmp_path / "asked").exists()
    assert counters(page, "port0") == {}
    assert len(counters(page, tap_of(page))) == (8 if kernel == "auto" else 0)


def test_its_counters_are_there_beside_those_of_a_tap(
        switched_hypervisor: PrivateHypervisor, switched: str, start_exporter: StartExporter) -> None:
    flags = ["--sampling.max-age=0s", "--collector.interface.vhostuser"]
    scraper = Scraper(start_exporter(switched_hypervisor.read_only_uri, flags), timeout_s=10)
    page = eventually(lambda: (found := scraper.scrape()) and counters(found, "port0") and found, "its counters", 60)
    assert counters(page, "port0") == {
        f"{way}_{word}_total": COUNTED[f"{theirs}_{their_word}"]
        for way, theirs in (("receive", "tx"), ("transmit", "rx"))
        for word, their_word in (("bytes", "bytes"), ("packets", "packets"), ("errors", "errors"),
                                 ("drops", "dropped"))}
    assert len(counters(page, tap_of(page))) == 8
    # The rest is still the kernel's.
    assert page.value("libvirt_domain_vcpu_timeslices_total", domain=switched, vcpu="0") is not None
    text, _ = scraper.text()
    lines = [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]
    assert len(lines) == len(set(lines))

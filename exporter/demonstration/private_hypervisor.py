"""A libvirtd of our own, with its sockets, files, network and guests apart from any other on the machine."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

from exporter.demonstration.errors import DemonstrationError
from exporter.demonstration.guest_console import GuestConsole
from exporter.demonstration.guest_definition import ConsoleFiles, Disk, Guest, Interface, domain_xml
from exporter.demonstration.guest_image import GuestImage
from exporter.demonstration.namespace_processes import NamespaceProcess
from exporter.demonstration.private_namespaces import BRIDGE, PREFIX_LENGTH, PrivateNamespaces
from exporter.demonstration.programs import find_program, run_program

# A Unix socket's path holds at most 107 bytes; the longest of ours is FOLDER/console/NAME.sock.
LONGEST_FOLDER = 60
PROGRAMS = ("unshare", "nsenter", "ip", "libvirtd", "virsh", "qemu-system-x86_64")

LIBVIRTD_CONF = """\
host_uuid = "{host_uuid}"
unix_sock_group = "root"
unix_sock_rw_perms = "0700"
auth_unix_ro = "none"
auth_unix_rw = "none"
"""
# Without cgroups a restarted daemon takes its guests back instead of killing what it cannot account for.
QEMU_CONF = """\
user = "root"
group = "root"
security_driver = "none"
dynamic_ownership = 0
remember_owner = 0
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
"""


class PrivateHypervisor:
    """A private libvirtd, from start() to stop(), also as a context manager. Needs root.

    It lives in mount, network and PID namespaces of its own, which end with this process whatever ends
    it: no QEMU, tap or mount stays behind. Its sockets and the guests' consoles are reached from outside, under
    `folder`, which stop() removes. Several may run at once. Methods are for one thread at a time.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """`folder` must be empty or missing, and not below /run; without it a temporary one is made."""
        self._given_folder = folder
        self._folder: Path | None = None
        self._namespaces: PrivateNamespaces | None = None
        self._interfaces = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def folder(self) -> Path:
        """Where everything of this hypervisor is. Raises DemonstrationError before start()."""
        if self._folder is None:
            raise DemonstrationError("the private hypervisor is not running; call start() first")
        return self._folder

    @property
    def uri(self) -> str:
        """The libvirt URI of the read-write socket (root only)."""
        return f"qemu+unix:///system?socket={self.folder}/run/libvirt-sock"

    @property
    def read_only_uri(self) -> str:
        """The libvirt URI of the read-only socket, for every user."""
        return f"qemu+unix:///system?socket={self.folder}/run/libvirt-sock-ro"

    # The hypervisor as a whole

    def start(self) -> None:
        """Make the namespaces and start libvirtd in them (about 2 s).

        Raises DemonstrationError without root, without a needed program, or where the kernel refuses.
        """
        if os.geteuid() != 0:
            raise DemonstrationError(
                "a private hypervisor needs root for its namespaces; use sudo, or name a libvirt with --libvirt.uri"
            )
        for program in PROGRAMS:
            find_program(program)
        self._folder = self._make_folder()
        try:
            self._namespaces = PrivateNamespaces(self._folder)
            self._namespaces.start()
            self.start_daemon()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End every process of this hypervisor and remove its folder. Does nothing when it is not running."""
        if self._namespaces is not None:
            self._namespaces.stop()
            self._namespaces = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def processes(self) -> list[NamespaceProcess]:
        """Every process of this hypervisor, numbered as seen from outside."""
        return self._namespaces.processes() if self._namespaces is not None else []

    @property
    def network_pid(self) -> int:
        """A process, numbered as seen from outside, in this hypervisor's network. Raises DemonstrationError."""
        if self._namespaces is None:
            raise DemonstrationError("the private hypervisor is not running; call start() first")
        return self._namespaces.init_pid

    def run(self, *command: str, timeout_s: float = 60.0) -> bytes:
        """Run a command inside the namespaces and return its output. Raises DemonstrationError if it fails."""
        if self._namespaces is None:
            raise DemonstrationError("the private hypervisor is not running; call start() first")
        return self._namespaces.run(*command, timeout_s=timeout_s)

    # The daemon alone: the guests go on running without it

    def start_daemon(self) -> None:
        """Start libvirtd and wait until it answers. Raises DemonstrationError if it does not within 60 s."""
        self.run(find_program("libvirtd"), "--daemon", "--pid-file", "/run/libvirt/libvirtd.pid")
        self.virsh("version")

    def stop_daemon(self) -> None:
        """End libvirtd alone, in good order."""
        self._end_daemon(signal.SIGTERM)

    def kill_daemon(self) -> None:
        """End libvirtd alone, as a crash would."""
        self._end_daemon(signal.SIGKILL)

    @property
    def daemon_pid(self) -> int:
        """libvirtd's process number outside. Raises DemonstrationError when it does not run."""
        return self._outside_pid(self.folder / "run" / "libvirtd.pid", "libvirtd")

    def _end_daemon(self, number: signal.Signals) -> None:
        pid = self.daemon_pid
        os.kill(pid, number)
        deadline = time.monotonic() + 15
        while any(process.pid == pid for process in self.processes()):
            if time.monotonic() > deadline:
                raise DemonstrationError(f"the private libvirtd (process {pid}) did not end; kill_daemon() does it")
            time.sleep(0.05)

    # Guests

    def virsh(self, *words: str, timeout_s: float = 60.0) -> str:
        """Run a virsh command on the read-write socket and return its output.

        Raises DemonstrationError with virsh's own words if it fails.
        """
        return run_program(["virsh", "--quiet", "--connect", self.uri, *words], timeout_s=timeout_s).decode()

    def new_disk(self, name: str, size_bytes: int, target: str = "vda") -> Disk:
        """A new, empty (sparse) raw disk file for guest `name`."""
        file = self.folder / "images" / f"{name}-{target}.raw"
        with file.open("xb") as image:
            image.truncate(size_bytes)
        return Disk(file, target, serial=f"{name}-{target}"[:20])

    def new_interface(self) -> Interface:
        """A network interface with a MAC and an address that no other guest has; the bridge knows both.

        Since neither end asks for the other's MAC, only ordered packets are on the line.
        """
        self._interfaces += 1
        high, low = divmod(self._interfaces + 1, 250)
        address, mac = f"10.77.{high}.{low + 1}", f"52:54:00:77:{high:02x}:{low + 1:02x}"
        self.run("ip", "neighbour", "replace", address, "lladdr", mac, "dev", BRIDGE, "nud", "permanent")
        return Interface(mac, BRIDGE, f"{address}/{PREFIX_LENGTH}")

    def console(self, name: str) -> GuestConsole:
        """The serial line of guest `name`."""
        return GuestConsole(name, self._console_files(name))

    def definition(self, guest: Guest, image: GuestImage) -> str:
        """The libvirt XML of `guest` on this hypervisor."""
        return domain_xml(guest, image, self._console_files(guest.name))

    def start_guest(self, guest: Guest, image: GuestImage) -> GuestConsole:
        """Create a transient guest; it boots while this returns (see GuestConsole.wait_ready).

        Raises DemonstrationError with libvirt's own words if it cannot be created.
        """
        console = self.console(guest.name)
        # The log is appended to over reboots; an earlier guest of that name must not look like this one.
        console.files.log.unlink(missing_ok=True)
        file = self.folder / "definitions" / f"{guest.name}.xml"
        file.write_text(self.definition(guest, image))
        self.virsh("create", str(file))
        return console

    def qemu_pid(self, name: str) -> int:
        """The process number, outside, of the QEMU of guest `name`. Raises DemonstrationError when there is none."""
        return self._outside_pid(self.folder / "run" / "qemu" / f"{name}.pid", "qemu-system")

    # How it is done

    def _make_folder(self) -> Path:
        if self._given_folder is None:
            folder = Path(tempfile.mkdtemp(prefix="virtgauge-"))
        else:
            folder = self._given_folder.resolve()
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise DemonstrationError(f"the folder {folder} is not empty; name another for the private hypervisor")
        if len(str(folder)) > LONGEST_FOLDER or folder.is_relative_to("/run"):
            folder.rmdir()
            raise DemonstrationError(
                f"the folder {folder} is below /run or has more than {LONGEST_FOLDER} letters, too many for"
                " socket paths; set TMPDIR to a short folder such as /tmp"
            )
        folder.chmod(0o755)
        for part in ("run", "lib/qemu", "log", "cache", "etc", "images", "console", "definitions"):
            (folder / part).mkdir(parents=True)
        (folder / "etc" / "libvirtd.conf").write_text(LIBVIRTD_CONF.format(host_uuid=uuid.uuid4()))
        (folder / "etc" / "qemu.conf").write_text(QEMU_CONF)
        return folder

    def _console_files(self, name: str) -> ConsoleFiles:
        return ConsoleFiles(self.folder / "console" / f"{name}.sock", self.folder / "console" / f"{name}.log")

    def _outside_pid(self, pid_file: Path, name: str) -> int:
        try:
            inside_pid = int(pid_file.read_text())
        except (FileNotFoundError, ValueError):
            inside_pid = 0
        for process in self.processes():
            if process.inside_pid == inside_pid and process.name.startswith(name):
                return process.pid
        raise DemonstrationError(f"the private hypervisor runs no {name} ({pid_file.name} names none); start it first")

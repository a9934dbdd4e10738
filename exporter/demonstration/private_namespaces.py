"""Mount, network and PID namespaces of our own, which end with the process that made them."""

from __future__ import annotations

import select
import subprocess
from importlib import resources
from pathlib import Path

from exporter.demonstration.errors import DemonstrationError
from exporter.demonstration.namespace_processes import NamespaceProcess, namespace_processes
from exporter.demonstration.programs import find_program, run_program

BRIDGE = "guests0"
BRIDGE_ADDRESS = "10.77.0.1"
BRIDGE_MAC = "52:54:00:77:00:01"
PREFIX_LENGTH = 16

_OWN = ("--mount", "--net", "--pid", "--fork", "--kill-child", "--propagation", "private")
_TIMEOUT_S = 15.0


class PrivateNamespaces:
    """Where libvirt's folders are those under `folder`, and the network is a bridge without a way out.

    Process 1 inside waits on a pipe from this process: when this one ends, however it ends, the kernel kills
    every process inside and takes the mounts and the network down. Needs root. For one thread at a time.
    """

    def __init__(self, folder: Path) -> None:
        """`folder` holds run, lib, log, cache and etc, which take the place of libvirt's own."""
        self._folder = folder
        self._holder: subprocess.Popen[bytes] | None = None
        self._init_pid = 0

    def start(self) -> None:
        """Make the namespaces. Raises DemonstrationError where the kernel refuses."""
        script = self._folder / "private-namespaces.sh"
        script.write_bytes((resources.files(__package__) / script.name).read_bytes())
        words = [str(self._folder), BRIDGE, f"{BRIDGE_ADDRESS}/{PREFIX_LENGTH}", BRIDGE_MAC]
        log = self._folder / "log" / "namespaces.log"
        with log.open("wb") as output:
            # A session of its own: Ctrl-C on the terminal must reach this process alone, which ends them all.
            self._holder = subprocess.Popen(
                [find_program("unshare"), *_OWN, "sh", str(script), *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                start_new_session=True,
            )
        answer = self._first_line()
        if answer[:1] != ["ready"]:
            said = " ".join(log.read_text().split()) or f"no answer in {_TIMEOUT_S:g} s"
            raise DemonstrationError(
                f"no private namespaces: {said}; the kernel must allow mount, network and PID namespaces"
                " and have bridges"
            )
        self._init_pid = int(answer[1])

    def stop(self) -> None:
        """End every process inside. Does nothing when there is none."""
        if self._holder is None:
            return
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        self._holder.stdin.close()
        self._holder.stdout.close()
        try:
            self._holder.wait(5)
        except subprocess.TimeoutExpired:
            # Its child, process 1 of the namespace, is killed with it, and so is all the rest.
            self._holder.kill()
            self._holder.wait()
        self._holder = None
        self._init_pid = 0

    @property
    def init_pid(self) -> int:
        """Process 1 of the namespaces, numbered as seen from outside; 0 where there are none."""
        return self._init_pid

    def processes(self) -> list[NamespaceProcess]:
        """Every process inside, numbered as seen from outside."""
        return namespace_processes(self._init_pid) if self._init_pid else []

    def run(self, *command: str, timeout_s: float = 60.0) -> bytes:
        """Run a command inside and return its output. Raises DemonstrationError if it fails."""
        enter = ["nsenter", "--target", str(self._init_pid), "--mount", "--net", "--pid"]
        return run_program([*enter, *command], timeout_s=timeout_s)

    def _first_line(self) -> list[str]:
        assert self._holder is not None
        assert self._holder.stdout is not None
        readable, _, _ = select.select([self._holder.stdout], [], [], _TIMEOUT_S)
        return self._holder.stdout.readline().decode().split() if readable else []

"""What `make run` does: finds the libvirt to watch, or brings one up, and runs the exporter on it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from exporter.demonstration.acceleration import accelerator
from exporter.demonstration.demonstration_guests import demonstration_guests
from exporter.demonstration.errors import DemonstrationError
from exporter.demonstration.guest_image import cache_folder, guest_image
from exporter.demonstration.private_hypervisor import PrivateHypervisor
from exporter.demonstration.programs import find_program, run_program

DEFAULT_URI = "qemu:///system"
DEFAULT_ADDRESS = ":9177"
# The flag that skips the local libvirt; it is ours, every other argument is the exporter's.
FORCE = "--demonstration"
HELP = f"""Usage: make run ARGS='[{FORCE}] [EXPORTER FLAGS]'

Serves the metrics of the local libvirt, or of a private demonstration hypervisor where none answers.
Samples are archived by a server of its own (--archive.uri=embedded) unless you say otherwise.
{FORCE} takes the private one in any case. Every other flag goes to 'virtgauge exporter'."""


def watch(arguments: Sequence[str]) -> int:
    """Run until interrupted; returns the exit status. Ends whatever it started, and only that.

    For the main thread, since it takes over SIGINT, SIGTERM and SIGHUP.
    Raises DemonstrationError if neither a local libvirt nor a private one can be had.
    """
    if "--help" in arguments or "-h" in arguments:
        print(HELP)
        return 0
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    flags = [argument for argument in arguments if argument != FORCE]
    with ExitStack() as ending:
        try:
            return _watch(flags, force=FORCE in arguments, ending=ending)
        except KeyboardInterrupt:
            # Ignored from here on: a second Ctrl-C must not leave half of it behind.
            _ignore_signals()
            return 0


def _watch(flags: list[str], *, force: bool, ending: ExitStack) -> int:
    chosen = _flag_value(flags, "--libvirt.uri")
    if chosen:
        _say(f"watching {chosen}", flags)
        return _run_exporter(flags)
    local = os.environ.get("LIBVIRT_DEFAULT_URI") or DEFAULT_URI
    if not force and _answers(local):
        _say(f"watching the local libvirt {local} ({_guest_count(local)}; ARGS={FORCE} shows three known ones)", flags)
        return _run_exporter([f"--libvirt.uri={local}", *_archive(flags), *flags])
    hypervisor = PrivateHypervisor()
    ending.callback(hypervisor.stop)
    ending.callback(_ignore_signals)
    uri, how = _start_demonstration(hypervisor)
    _say(f"watching the demonstration hypervisor (3 guests, {how})", flags)
    # What the demonstration archives is gone with it.
    state = f"--state.directory={hypervisor.folder / 'state'}"
    return _run_exporter([f"--libvirt.uri={uri}", state, *_archive(flags), *flags])


def _archive(flags: Sequence[str]) -> list[str]:
    """The embedded archive, unless the flags, a file or the environment say what there shall be."""
    said = any(flag.partition("=")[0] in ("--archive.uri", "--config.file") for flag in flags)
    said = said or "VIRTGAUGE_ARCHIVE_URI" in os.environ or "VIRTGAUGE_CONFIG_FILE" in os.environ
    return [] if said else ["--archive.uri=embedded"]


def _start_demonstration(hypervisor: PrivateHypervisor) -> tuple[str, str]:
    """Bring up the hypervisor and its guests; returns the read-only URI and how the guests run."""
    cache = cache_folder()
    hypervisor.start()
    image = guest_image(cache)
    kind = accelerator(hypervisor, image, cache)
    for guest in demonstration_guests(hypervisor, kind):
        hypervisor.start_guest(guest, image)
    return hypervisor.read_only_uri, "KVM" if kind == "kvm" else "software emulation"


def _answers(uri: str) -> bool:
    try:
        run_program(["virsh", "--readonly", "--connect", uri, "uri"], timeout_s=5)
    except DemonstrationError:
        return False
    return True


def _guest_count(uri: str) -> str:
    try:
        listed = run_program(["virsh", "--readonly", "--connect", uri, "list", "--name"], timeout_s=5)
    except DemonstrationError:
        return "its guests cannot be counted"
    count = len(listed.split())
    return f"{count} running guest{'' if count == 1 else 's'}"


def _run_exporter(flags: Sequence[str]) -> int:
    """Run the exporter to its end; it is interrupted with this process, even if that is killed."""
    command = Path(sys.executable).with_name("virtgauge")
    if not command.exists():
        raise DemonstrationError(f"there is no {command}; run 'make setup'")
    # setpriv: the kernel ends the exporter when this process dies without a chance to do so.
    words = [find_program("setpriv"), "--pdeathsig", "TERM", str(command), "exporter", *flags]
    exporter = subprocess.Popen(words)
    try:
        return exporter.wait()
    finally:
        _ignore_signals()
        if exporter.poll() is None:
            exporter.terminate()
            try:
                exporter.wait(10)
            except subprocess.TimeoutExpired:
                exporter.kill()
                exporter.wait()


def _ignore_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _say(what: str, flags: Sequence[str]) -> None:
    address = _flag_value(flags, "--web.listen-address") or DEFAULT_ADDRESS
    host, _, port = address.rpartition(":")
    shown = "localhost" if host in ("", "0.0.0.0", "[::]") else host
    print(f"virtgauge: {what}; open http://{shown}:{port}/", flush=True)


def _flag_value(flags: Sequence[str], name: str) -> str | None:
    """The value of a flag given as --name=VALUE or --name VALUE."""
    for position, flag in enumerate(flags):
        if flag.startswith(f"{name}="):
            return flag.removeprefix(f"{name}=")
        if flag == name and position + 1 < len(flags):
            return flags[position + 1]
    return None

"""`virtgauge domain|interface|saved VERB`: the control operations on the command line.

Generated from the operations' typed parameters; runs them itself, with the caller's rights on libvirt's socket.
Exit status: 0 done, 2 usage, 3 refused by the state, 4 not found, 5 busy or timed out, 6 not supported by this
host, 1 the rest, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import click
from click.shell_completion import CompletionItem

from exporter.config import Settings
from exporter.control import own_connectivity
from exporter.control.connection import Session
from exporter.control.errors import ControlError, ForbiddenError, UnconfirmedError
from exporter.control.executor import Actor, Executor, Request
from exporter.control.operation import Operation, Parameters, Result, Subject
from exporter.control.operations import OPERATIONS, by_name
from exporter.control.request_parameters import parse_parameters
from exporter.control.startup import control_folders, recover
from exporter.errors import UsageError
from exporter.nearest import nearest
from exporter.operation_flags import parameter_document, parameter_options
from exporter.operation_output import printable, render, uptime
from exporter.operation_waiting import not_cut_off, shown_progress, wait_for
from exporter.setting_catalogue import collector_defaults
from exporter.setting_loading import load_settings
from exporter.setting_types import parse_duration
from exporter.standard_streams import OutputError

AnyOperation = Operation[Any]
_EPILOG = (
    "Exit status: 0 done, 2 usage, 3 refused by the state, 4 not found, 5 busy or timed out, "
    "6 not supported by this host, 1 the rest."
)
_HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
# Set before the names of the flags that every operation has, which may also be an operation's parameters.
_COMMON = "common__"
_OF_DOMAINS = ("snapshot", "checkpoint")
_TITLES = {
    "lookup": "Look", "definition": "Define", "lifecycle": "Start, stop, dump", "provisioning": "New guests",
    "save_restore": "Save and restore", "hotplug": "Devices and limits", "migration": "Move to another host",
    "snapshots": "Images of disks",
}  # fmt: skip
_GROUPS = {
    "attach": "Give a guest a device, while it runs or for its next boot.",
    "detach": "Take a device from a guest, while it runs or for its next boot.",
    "set": "Set a guest's memory, vCPUs, disk sizes and limits, while it runs or for its next boot.",
    "lift": "Lift a guest's limits, while it runs or for its next boot.",
}
_TAKEN = frozenset(
    ("--output", "--dry-run", "--yes", "--wait", "--wait-lock", "--deadline", "--reason", "--help",
     "--libvirt.uri", "--state.directory", "--config.file")
)  # fmt: skip


def build_domain() -> click.Command:
    """`virtgauge domain`."""
    return group("domain", "Look at guests, define and start them, stop, save and restore them.")


def build_interface() -> click.Command:
    """`virtgauge interface`."""
    return group("interface", "Look at the host's network interfaces, and change them with a way back.")


def build_snapshot() -> click.Command:
    """`virtgauge snapshot`."""
    return group("snapshot", "Snapshots of a guest: list, create, revert, delete.")


def build_checkpoint() -> click.Command:
    """`virtgauge checkpoint`."""
    return group("checkpoint", "Checkpoints of a guest's disks: list, create, delete.")


def build_network() -> click.Command:
    """`virtgauge network`."""
    return group("network", "libvirt's virtual networks: list, define, start, stop, leases.")


def build_pool() -> click.Command:
    """`virtgauge pool`."""
    return group("pool", "Storage pools: list, define, start, stop, refresh.")


def build_volume() -> click.Command:
    """`virtgauge volume`."""
    return group("volume", "Volumes of a storage pool: list, create, resize, delete.")


def build_nodedev() -> click.Command:
    """`virtgauge nodedev`."""
    return group("nodedev", "Look at the host's devices, and take PCI devices for guests.")


def build_saved() -> click.Command:
    """`virtgauge saved`."""
    return group("saved", "Look at saved guests, check their images, and restore them.")


def group(noun: str, help_text: str) -> click.Group:
    """All operations of one noun; the help lists them by area."""
    made = _NounGroup(noun, help=help_text, epilog=_EPILOG, context_settings=dict(_HELP))
    for operation in OPERATIONS:
        if operation.noun == noun:
            _parent(made, operation.words[1:-1]).add_command(command(operation))
            made.areas.setdefault(operation.words[1], operation.area)
    return made


def _parent(noun: click.Group, words: tuple[str, ...]) -> click.Group:
    """The group that a command stands in: the noun's, or one of its verb's (`domain set`)."""
    if not words:
        return noun
    found = noun.commands.get(words[0])
    if not isinstance(found, click.Group):
        help_text = _GROUPS[words[0]]
        found = _NounGroup(words[0], help=help_text, epilog=_EPILOG, context_settings=dict(_HELP))
        noun.add_command(found)
    return found


class _NounGroup(click.Group):
    """Commands of one noun. Where they are of several areas, the help has a section for each."""

    def __init__(self, *arguments: Any, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.areas: dict[str, str] = {}

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if len(set(self.areas.values())) < 2:
            super().format_commands(ctx, formatter)
            return
        for area in dict.fromkeys(self.areas.values()):
            names = [name for name, its_area in self.areas.items() if its_area == area]
            with formatter.section(_TITLES.get(area, area.replace("_", " ").capitalize())):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(200)) for name in names])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.commands and not args[0].startswith("-"):
            near = nearest(args[0], self.commands)
            raise UsageError(
                f"unknown command {args[0]!r}; the nearest is {near}; run '{ctx.command_path} --help' for all"
            )
        return super().resolve_command(ctx, args)


def command(operation: AnyOperation) -> click.Command:
    """One operation as a command."""

    def run(**values: Any) -> None:
        common = _common(values)
        reference = values.pop(f"{_COMMON}reference", None)
        own = {name: value for name, value in values.items() if not name.startswith(_COMMON)}
        Invocation.of(operation, common).run(reference, own)

    return _OperationCommand(
        operation, operation.words[-1], callback=run, help=operation.summary, short_help=operation.summary,
        epilog=_EPILOG, context_settings=dict(_HELP),
    )  # fmt: skip


class _OperationCommand(click.Command):
    """One operation; its flags are made when it is used, since a noun has dozens and a call is of one."""

    def __init__(self, operation: AnyOperation, *arguments: Any, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self._operation = operation

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        if not self.params:
            self.params = _parameters(self._operation)
        return super().get_params(ctx)


def _parameters(operation: AnyOperation) -> list[click.Parameter]:
    parameters: list[click.Parameter] = []
    if operation.takes_subject:
        complete = _names("domain" if operation.noun in _OF_DOMAINS else operation.noun)
        parameters.append(click.Argument([f"{_COMMON}reference"], metavar="NAME", shell_complete=complete))
    parameters += parameter_options(operation.parameters, _TAKEN)
    return [*parameters, *_common_options(operation)]


def _common(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(_COMMON): value for name, value in values.items() if name.startswith(_COMMON)}


def _common_options(operation: AnyOperation) -> list[click.Option]:
    choice = click.Choice(["table", "json", "yaml"])
    options = [_option("output", "-o", type=choice, default="table", help="How the result is shown. [default: table]")]
    if not operation.reads:
        options += [
            _option("dry_run", is_flag=True, help="Only tell what would be done, changed and lost."),
            _option("wait_lock", "--wait", metavar="DURATION", default="0",
                    help="Wait this long for another operation that holds the same thing. [default: 0]"),
            _option("deadline", metavar="DURATION", help="Give up after this, instead of the usual time."),
            _option("reason", default="", help="Why, for the audit trail."),
            _option("yes", "-y", is_flag=True, help="Do not ask, even where it cannot be undone."),
        ]  # fmt: skip
    return [
        *options,
        _option("libvirt_uri", flag="--libvirt.uri", metavar="URI", help="libvirt connection URI."),
        _option("state_directory", flag="--state.directory", metavar="DIRECTORY", help="Locks and audit trail."),
        _option("config_file", flag="--config.file", metavar="FILE", help="YAML file with settings."),
    ]


def _option(name: str, *shorter: str, flag: str = "", **attributes: Any) -> click.Option:
    return click.Option([*shorter, flag or "--" + name.replace("_", "-"), f"{_COMMON}{name}"], **attributes)


def _names(noun: str) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    """Completes a subject's name from the noun's list; says nothing where libvirt cannot be asked."""

    def complete(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        listing = by_name().get(f"{noun}.list")
        if listing is None:
            return []
        try:
            result = Invocation.of(listing, _common(ctx.params)).looked_up()
        except Exception:  # noqa: BLE001 - whatever fails, a half-typed command line is no place to tell it
            return []
        rows = result.details.get("rows")
        listed = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
        names = [str(row.get("name") or row.get("id") or "") for row in listed]  # a saved image is named by its id
        return [CompletionItem(name) for name in names if name and name.startswith(incomplete)]

    return complete


@dataclass(frozen=True)
class Invocation:
    """One call of one operation: with whose rights, on what, shown how."""

    operation: AnyOperation
    executor: Executor
    common: Mapping[str, Any]

    @classmethod
    def of(cls, operation: AnyOperation, common: Mapping[str, Any]) -> Invocation:
        """From the common flags; reads the settings, connects to nothing yet. Raises SettingsError."""
        names = {"libvirt.uri": "libvirt_uri", "state.directory": "state_directory", "config.file": "config_file"}
        flags = {key: common.get(name) for key, name in names.items()}
        settings = load_settings(
            Settings, flags=flags, environ=os.environ, collectors=collector_defaults(), is_root=os.geteuid() == 0
        )
        # Reading needs no right to change, so it does not ask for one.
        session = Session(settings.libvirt.uri, read_only=operation.reads)
        return cls(operation, Executor(session, control_folders(settings)), common)

    def looked_up(self) -> Result:
        """The result of a listing without parameters."""
        return self.executor.run(self.operation, None, parse_parameters(self.operation, {}), Request(_actor("")))

    def run(self, reference: str | None, values: Mapping[str, object]) -> None:
        """Runs it and shows the result. Raises ControlError, UsageError, KeyboardInterrupt."""
        output = str(self.common.get("output", "table"))
        try:
            parameters = parse_parameters(self.operation, parameter_document(self.operation.parameters, values))
            if not self.operation.reads:
                for told in recover(self.executor):
                    click.echo(f"virtgauge: warning: an earlier {printable(told)}", err=True)
            result = self._confirmed(reference, parameters)
        except ControlError as error:
            with contextlib.suppress(OutputError):  # the error itself is told on standard error
                if output != "table":
                    render({"error": {**error.as_json(), "exit_status": error.exit_status}}, output)
            raise
        finally:
            self.executor.close()
        try:
            render(result.model_dump(mode="json", exclude_none=True), output)
        finally:
            for warning in result.warnings if output == "table" else ():
                click.echo(f"virtgauge: warning: {printable(warning)}", err=True)

    def _request(self, confirmed: str | None) -> Request:
        deadline = self.common.get("deadline")
        deadline_s = _duration("--deadline", str(deadline)) if deadline else None
        if deadline_s == 0:
            raise UsageError(f"--deadline {deadline!r}: nothing can be done in no time; give more, or leave it out")
        return Request(
            actor=_actor(str(self.common.get("reason") or "")),
            dry_run=bool(self.common.get("dry_run")),
            confirmed=confirmed,
            lock_wait_s=_duration("--wait", str(self.common.get("wait_lock") or "0")),
            deadline_s=deadline_s,
            cancelled=threading.Event(),
        )

    def _confirmed(self, reference: str | None, parameters: Parameters) -> Result:
        """The result, asking first where it is known to be destructive, or where it turns out that it would be."""
        if self.operation.reads:
            return self._looked_at(reference, parameters)
        if self.common.get("yes") and not self.common.get("dry_run"):
            subject = self.executor.find(self.operation, reference, parameters)
            return self._run(reference, parameters, self._request(subject.name))
        known = self.operation.is_destructive(parameters) and not self.common.get("dry_run")
        confirmed = self._agreed(reference, parameters) if known else None
        request = replace(self._request(confirmed), can_be_asked=not known and sys.stdin.isatty())
        try:
            return self._run(reference, parameters, request)
        except UnconfirmedError:
            if known:
                raise
        return self._run(reference, parameters, self._request(self._agreed(reference, parameters)))

    def _looked_at(self, reference: str | None, parameters: Parameters) -> Result:
        """By the read-only socket; by the other where libvirt shows it to no one else (an XML with its secrets)."""
        try:
            return self._run(reference, parameters, self._request(None))
        except ForbiddenError:
            self.executor.close()
        session = Session(self.executor.session.uri)
        allowed = replace(self, executor=Executor(session, self.executor.folders))
        try:
            return allowed._run(reference, parameters, self._request(None))
        finally:
            allowed.executor.close()

    def _agreed(self, reference: str | None, parameters: Parameters) -> str | None:
        """The subject's name, once the caller has agreed; None where there is nothing to change."""
        asked = replace(self._request(None), dry_run=True)
        look = self.executor.run(self.operation, reference, parameters, asked)
        if look.plan is not None and look.plan.nothing_to_do:
            return None
        subject = self.executor.find(self.operation, reference, parameters)
        _ask(self.operation, subject, look)
        return subject.name

    def _run(self, reference: str | None, parameters: Parameters, request: Request) -> Result:
        """In a thread of its own, so that Ctrl-C asks it to stop instead of cutting it off in the middle."""
        outcome: list[Result | BaseException] = []
        done = threading.Event()
        with shown_progress(self.operation) as told, not_cut_off():
            asked = replace(request, progress=told)
            address = own_connectivity.ssh_address(os.environ)

            def work() -> None:
                own_connectivity.caller_address.set(address)
                try:
                    outcome.append(self.executor.run(self.operation, reference, parameters, asked))
                except BaseException as error:  # noqa: BLE001 - raised again in the main thread
                    outcome.append(error)
                finally:
                    done.set()

            threading.Thread(target=work, name="operation", daemon=True).start()
            wait_for(done, request.cancelled)
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        return outcome[0]


def _actor(reason: str) -> Actor:
    return Actor(name=getpass.getuser() if os.environ.get("USER") else f"uid {os.getuid()}", way="command line",
                 reason=reason)  # fmt: skip


def _duration(flag: str, text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageError(f"{flag} {text!r}: {error}") from error


def _ask(operation: AnyOperation, subject: Subject, look: Result) -> None:
    """Asks on the terminal; raises UsageError where there is none, click.Abort for a no."""
    running = "running" if subject.id is not None else "not running"
    since = f"running for {uptime(subject.uptime_s)}" if subject.uptime_s is not None else running
    of = f"{subject.kind} {printable(subject.name)}"
    about = f"{of} ({since})" if subject.kind == "domain" else of
    if not sys.stdin.isatty():
        raise UsageError(f"{operation.verb} of {about} cannot be undone; give --yes to do it without being asked")
    for lost in look.plan.lost if look.plan else ():
        click.echo(f"would be lost: {printable(lost)}", err=True)
    click.confirm(f"{operation.verb} of {about} cannot be undone. Go on?", abort=True, err=True)

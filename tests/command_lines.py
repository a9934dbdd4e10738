"""`virtgauge` command lines as documents print them: found in Markdown, and parsed as the program itself would."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import click

from collectors import COLLECTORS
from exporter import cli
from exporter.archive.history_fields import HistoryFields
from exporter.archive.timespan import parse_moment
from exporter.command_operations import _COMMON
from exporter.config import Settings
from exporter.control.operations import OPERATIONS
from exporter.control.request_parameters import parse_parameters
from exporter.operation_flags import parameter_document
from exporter.setting_catalogue import collector_defaults
from exporter.setting_loading import load_settings

BY_WORDS = {operation.words: operation for operation in OPERATIONS}
HELP = {"--help", "-h", "--version"}
ENDS = {"|", ">", ">>", "&&", "||", ";", "&", "<", "2>"}


@dataclass(frozen=True)
class Line:
    """A command as printed; `mentioned` in prose, where its name alone will do."""

    text: str
    mentioned: bool


def commands(text: str, program: str = "virtgauge") -> Iterator[Line]:
    """Each command of `program` in a document's code, lines that go on joined; comments and other commands left out."""
    fences = re.findall(r"^ *```[a-z]*\n(.*?)^ *```", text, re.M | re.S)
    outside = re.sub(r"^ *```.*?^ *```", "", text, flags=re.M | re.S)
    inline = [code.replace("\n", " ") for code in re.findall(r"`([^`]+)`", outside)]
    lines = [line for fence in fences for line in fence.replace("\\\n", " ").splitlines()]
    for line in [*lines, *inline]:
        found = re.match(rf"\s*(?:\$ |sudo )*(?:/\S+/)?({program}(?: .*)?)$", line)
        # NOUN: where all commands are described at once; is: what the program itself says.
        if found and "NOUN" not in line and not line.startswith(f"{program} is "):
            yield Line(found[1], line in inline)


def words_of(line: str) -> list[str]:
    """The words of the command itself, without what follows a pipe or a redirection."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    words = list(lexer)
    return words[: next((at for at, word in enumerate(words) if word in ENDS), len(words))]


@cache
def noun(name: str) -> click.Command | None:
    """`virtgauge NAME`; built once, since each brings all its operations."""
    root = cli.build()
    return root.get_command(click.Context(root), name)


def check(line: Line) -> None:
    """Raises where the program would refuse the line: an unknown command or flag, or a value it does not take."""
    words = words_of(line.text)[1:]
    command: click.Command = cli.build()
    context = root = click.Context(command, info_name="virtgauge")
    path: tuple[str, ...] = ()
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        path += (words[0],)
        found = noun(words[0]) if context is root else command.get_command(context, words[0])
        assert found, f"there is no command {' '.join(path)}"
        command, words = found, words[1:]
        context = click.Context(command, parent=context, info_name=path[-1])
    if isinstance(command, click.Group) or (line.mentioned and not words):
        assert not set(words) - HELP, f"{' '.join(path)} has no such flag"
        return  # its name, as prose does, or its help
    try:
        parsed = command.make_context(path[-1], [word for word in words if word not in HELP], parent=context.parent)
    except click.BadParameter as error:
        if "No such file" not in error.message:  # a file of whoever reads it
            raise
        return
    except click.MissingParameter:
        if not HELP & set(words):
            raise
        return
    _check_values(path, parsed)


def _check_values(path: tuple[str, ...], parsed: click.Context) -> None:
    """What click takes as text and the program checks later."""
    params = parsed.params
    if operation := BY_WORDS.get(path):
        own = {name: value for name, value in params.items() if not name.startswith(_COMMON) and name != "xml"}
        document = parameter_document(operation.parameters, own)
        parse_parameters(operation, document if params.get("xml") is None else {**document, "xml": "<domain/>"})
    elif path == ("exporter",):
        flags = {name.replace("__", "."): value for name, value in params.items()}
        flags["config.file"] = None  # one of whoever reads it
        load_settings(Settings, flags=flags, environ={}, collectors=collector_defaults(), is_root=True)
    elif path == ("history",):
        HistoryFields(COLLECTORS).all_named(params["field"])
    for moment in ("since", "until"):
        if parsed.get_parameter_source(moment) is click.core.ParameterSource.COMMANDLINE:
            parse_moment(params[moment], time.time())

"""The kinds of values settings take: durations, addresses, libvirt URIs, lists, secrets.

Every parser takes what a flag, the environment or YAML may hold and is idempotent. It raises ValueError with
the cause; `exporter.config` adds the key, where it came from and the next step.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, InstanceOf

from exporter.expressions import Expression
from exporter.listening import ListenAddress
from exporter.nearest import nearest


class SecretMark:
    """Marks a setting, in its Annotated type: no flag, since ps shows flags, and masked when printed."""


SECRET = SecretMark()

_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0, "y": 31536000.0}
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhdwy])")
_DURATION = re.compile(rf"(?:{_DURATION_PART.pattern})+")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")

# https://libvirt.org/uri.html: the drivers and transports a URI may name.
_DRIVERS = (
    "qemu", "test", "xen", "lxc", "ch", "bhyve", "vz", "parallels", "openvz", "vbox", "esx", "gsx", "vpx",
    "hyperv", "vmwareplayer", "vmwarews", "vmwarefusion", "remote",
)  # fmt: skip
_TRANSPORTS = ("unix", "ssh", "tls", "tcp", "libssh", "libssh2", "ext")
_URI_FORM = "write it like qemu:///system or qemu+ssh://user@host/system"


def parse_duration(value: object) -> float:
    """Seconds from `15`, `"15"`, `15s`, `500ms`, `1m30s`, `1.5h`; raises ValueError for anything else."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    text = value.strip() if isinstance(value, str) else ""
    if _NUMBER.fullmatch(text):
        return float(text)
    if _DURATION.fullmatch(text):
        return sum(float(number) * _UNIT_SECONDS[unit] for number, unit in _DURATION_PART.findall(text))
    raise ValueError("is not a duration; write it like 15s, 500ms, 1m30s or a number of seconds")


def format_duration(seconds: float) -> str:
    """Seconds in the spelling `parse_duration` reads."""
    return f"{seconds:.12g}s"


def parse_libvirt_uri(value: object) -> str:
    """A libvirt connection URI of a known driver and transport; raises ValueError for a malformed one."""
    if not isinstance(value, str):
        raise ValueError(f"is not a libvirt URI; {_URI_FORM}")
    if re.search(r"[\s\x00-\x1f\x7f]", value) or not value.isascii():
        raise ValueError(f"holds a blank or a character that a URI cannot have; {_URI_FORM}")
    scheme, colon, rest = value.partition(":")
    if not colon or not rest.startswith("/"):
        raise ValueError(f"is not a libvirt URI (aliases are not looked up); {_URI_FORM}")
    _check_scheme(scheme.lower())
    _check_host(value)
    return value


def _check_scheme(scheme: str) -> None:
    driver, _, transport = scheme.partition("+")
    if driver not in _DRIVERS:
        near = nearest(driver, _DRIVERS)
        raise ValueError(f"names no driver of libvirt ({driver!r}, the nearest is {near!r})")
    if transport and transport not in _TRANSPORTS:
        near = nearest(transport, _TRANSPORTS)
        raise ValueError(f"names no transport of libvirt ({transport!r}, the nearest is {near!r})")


def _check_host(value: str) -> None:
    try:
        uri = urlsplit(value)
        # The port is checked only when it is asked for.
        host, _port = uri.hostname, uri.port
    except ValueError as error:
        # Its own words may quote a password that stands where the port belongs.
        raise ValueError(f"has a malformed host or port; {_URI_FORM}") from error
    if uri.netloc and not host:
        raise ValueError(f"has no host between // and the path; {_URI_FORM}")


_DESTINATION = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,62})=(\S+)(?: +(\S+))?")
_STREAM = re.compile(r"(?:tcp|rdma)://[A-Za-z0-9.:\[\]%_-]+|unix:///\S+")


def parse_migration_destination(value: object) -> str:
    """`NAME=URI` or `NAME=URI STREAM_URI`; raises ValueError for a malformed one."""
    found = _DESTINATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        raise ValueError("is no destination; write it like kvm2=qemu+tls://kvm2.example.org/system")
    name, uri, stream = found.groups()
    parse_libvirt_uri(uri)
    if stream and not _STREAM.fullmatch(stream):
        raise ValueError("has a malformed way for the memory behind its URI; write it like tcp://192.0.2.7")
    return f"{name}={uri} {stream}" if stream else f"{name}={uri}"


def distinct_destinations(values: tuple[str, ...]) -> tuple[str, ...]:
    """The values; raises ValueError where two have one name."""
    names = [value.partition("=")[0] for value in values]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ValueError(f"names {twice} twice; choose another name for one")
    return values


_SECRET_OPTION = re.compile(r"((?:password|session_token)[=:])[^&,\s]+", re.IGNORECASE)
# A MongoDB password may hold an unescaped slash by mistake; with other URIs, what follows one is a path. Where no slash
# ends the search, it ends some way on: logs bring texts that others wrote.
_USER_INFO = re.compile(r"(mongodb(?:\+srv)?://[^:@/\s]*:)[^@\s]{0,1024}@|(://[^:@/\s]*:)[^@/\s]*@")
_ARCHIVE_FORM = "write embedded, or a URI like mongodb://user@host:27017/?authSource=admin"


def mask_passwords(text: str) -> str:
    """`text` with the passwords of URIs, in front of @ and in their options, as ***."""
    return _SECRET_OPTION.sub(r"\1***", _USER_INFO.sub(r"\1\2***@", text))


def holds_password(value: object) -> bool:
    """Whether a text has a password that `mask_passwords` would hide."""
    return isinstance(value, str) and mask_passwords(value) != value


def parse_archive_uri(value: object) -> str:
    """`embedded`, or a MongoDB URI; raises ValueError for what cannot be one. The driver checks it in full."""
    if value == "embedded":
        return "embedded"
    if not isinstance(value, str) or not re.match(r"mongodb(\+srv)?://", value):
        raise ValueError(f"is no MongoDB URI; {_ARCHIVE_FORM}")
    if re.search(r"[\s\x00-\x1f\x7f]", value):
        raise ValueError(f"holds a blank or control character; {_ARCHIVE_FORM}")
    hosts = value.partition("://")[2].partition("/")[0].partition("?")[0]
    if not hosts.rpartition("@")[2] or hosts.count("@") > 1:
        raise ValueError(f"has no host, or an @ in the password that is not written %40; {_ARCHIVE_FORM}")
    return value


_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]iB|)")
_SIZE_BYTES = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def parse_size(value: object) -> int:
    """Bytes from `8GiB`, `512MiB` or a number; raises ValueError for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    found = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        raise ValueError("is not a size; write it like 8GiB, 512MiB or a number of bytes")
    return int(float(found[1]) * _SIZE_BYTES[found[2]])


def parse_telemetry_path(value: object) -> str:
    """A URL path; raises ValueError for one without a leading /, with a query or blank, or a reserved one."""
    if not isinstance(value, str) or not re.fullmatch(r"/[A-Za-z0-9._~/-]*", value):
        raise ValueError("is not a URL path; write it like /metrics")
    if value.startswith("/-/") or value == "/-":
        raise ValueError("is kept for the health pages; choose another, like /metrics")
    # Who asks for a page there is asked for a token and not for the web configuration's password.
    if value.startswith("/api/") or value == "/api":
        raise ValueError("is kept for the APIs; choose another, like /metrics")
    return value


def parse_list(value: object) -> tuple[object, ...]:
    """A tuple from a YAML list, one text, or text with commas; raises ValueError for anything else."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if isinstance(value, (list, tuple)):
        return tuple(value)
    raise ValueError("is neither text nor a list; write it in quotes or like ['first', 'second']")


def at_least_one(values: tuple[ListenAddress, ...]) -> tuple[ListenAddress, ...]:
    """The values; raises ValueError where there are none."""
    # Not pydantic's min_length: that also complains where an item was refused.
    if not values:
        raise ValueError("holds no address; name at least one")
    return values


def parse_listen_address(value: object) -> ListenAddress:
    """A ListenAddress from its text; raises ValueError for a malformed one."""
    if isinstance(value, ListenAddress):
        return value
    if not isinstance(value, str):
        raise ValueError("is not a listen address; write it in quotes, like ':9177'")
    return ListenAddress.parse(value)


def check_regex(value: str) -> str:
    """The text itself; raises ValueError where it is no regular expression."""
    try:
        Expression(value)
    except ValueError as error:
        raise ValueError(f"is not a regular expression of RE2 ({error})") from error
    return value


Regex = Annotated[str, AfterValidator(check_regex)]
"""A regular expression, checked, kept as text; see `exporter.expressions`."""


def parse_off(value: object) -> object:
    """YAML 1.1 reads a bare `off` as false."""
    return "off" if value is False else value


def parse_path(value: object) -> object:
    """A path from text; `~` stands for the home folder, as in a shell."""
    return Path(value).expanduser() if isinstance(value, str) and value else value


Duration = Annotated[float, BeforeValidator(parse_duration)]
LibvirtUri = Annotated[str, BeforeValidator(parse_libvirt_uri)]
MigrationDestination = Annotated[str, BeforeValidator(parse_migration_destination)]
ArchiveUri = Annotated[str, BeforeValidator(parse_archive_uri)]
Size = Annotated[int, BeforeValidator(parse_size)]
TelemetryPath = Annotated[str, BeforeValidator(parse_telemetry_path)]
FilePath = Annotated[Path, BeforeValidator(parse_path)]
ListenAddresses = Annotated[
    tuple[Annotated[InstanceOf[ListenAddress], BeforeValidator(parse_listen_address)], ...],
    BeforeValidator(parse_list),
    AfterValidator(at_least_one),
]

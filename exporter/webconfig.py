"""The file of --web.config.file: TLS, passwords, headers and rate limit, as Prometheus' exporter-toolkit reads it.

Key for key and error for error https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md,
within what Python's ssl can do; where it cannot, the file is refused with the reason. The file is read again when it
changes. This module reads and checks; `exporter.webconfig_tls` makes contexts, `exporter.webconfig_app` applies it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError
from pydantic_core import ErrorDetails

from exporter.errors import SettingsError
from exporter.nearest import nearest
from exporter.strict_yaml import StrictLoader
from exporter.webconfig_tls_names import CIPHERS, CLIENT_AUTH_TYPES, CURVES, TLS_VERSIONS

_log = logging.getLogger(__name__)

_MOST_BYTES = 1024 * 1024
# What the toolkit lets be set, and the values it allows where it limits them.
HEADERS: Mapping[str, tuple[str, ...]] = {
    "Strict-Transport-Security": (),
    "X-Content-Type-Options": ("nosniff",),
    "X-Frame-Options": ("deny", "sameorigin"),
    "X-XSS-Protection": (),
    "Content-Security-Policy": (),
}
_BCRYPT = re.compile(r"\$2[abxy]?\$(\d\d)\$[./A-Za-z0-9]{53}")
_GO_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


class WebConfigError(SettingsError):
    """The web configuration file, or a file it names, is wrong. Never holds a secret."""


def parse_go_duration(value: object) -> float:
    """Seconds from Go's spelling (1s, 1m30s, 500ms) or from whole nanoseconds; raises ValueError for else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value * 1e-9
    text = value.removeprefix("+") if isinstance(value, str) else ""
    if text == "0":
        return 0.0
    parts = _GO_DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError("is not a duration; write it like 1s, 500ms or 1m30s")
    return sum(float(number) * _UNIT_S[unit] for number, unit in parts)


def _text(value: object) -> object:
    """YAML reads `X-XSS-Protection: 0` as a number; Go's reader takes it as text."""
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _empty_if_null(value: object) -> object:
    return "" if value is None else value


def _known(what: str, names: Mapping[str, object]) -> AfterValidator:
    def check(value: str) -> str:
        if value not in names:
            raise ValueError(f"unknown {what}: {value[:60]!r}; the nearest is {nearest(value, names)}")
        return value

    return AfterValidator(check)


_Text = Annotated[str, BeforeValidator(_empty_if_null)]
_Secret = Annotated[SecretStr, BeforeValidator(_empty_if_null)]
_Mapping = BeforeValidator(lambda value: {} if value is None else value)
_List = BeforeValidator(lambda value: () if value is None else tuple(value) if isinstance(value, list) else value)


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class TlsServerConfig(_Part):
    """`tls_server_config`; file names are as written, relative to the file's folder."""

    cert_file: _Text = ""
    key_file: _Text = ""
    cert: _Text = ""
    key: _Secret = SecretStr("")
    client_auth_type: _Text = ""
    client_ca_file: _Text = ""
    client_ca: _Text = ""
    client_allowed_sans: Annotated[tuple[str, ...], _List] = ()
    min_version: Annotated[str, _known("TLS version", TLS_VERSIONS)] = "TLS12"
    max_version: Annotated[str, _known("TLS version", TLS_VERSIONS)] = "TLS13"
    cipher_suites: Annotated[tuple[Annotated[str, _known("cipher", CIPHERS)], ...], _List] = ()
    prefer_server_cipher_suites: bool = True
    curve_preferences: Annotated[tuple[Annotated[str, _known("curve", CURVES)], ...], _List] = ()

    @property
    def wanted(self) -> bool:
        """Whether TLS is on: as in the toolkit, only these keys decide it."""
        key = self.key.get_secret_value()
        named = (self.cert_file, self.cert, self.key_file, key, self.client_ca_file, self.client_ca)
        return any((*named, self.client_auth_type))


class HttpServerConfig(_Part):
    http2: bool = True
    headers: dict[str, Annotated[str, BeforeValidator(_text)]] = {}


class RateLimit(_Part):
    """At most `burst` requests at once, and one more each `interval` seconds; 0 means no limit."""

    interval: Annotated[float, BeforeValidator(parse_go_duration)] = 0.0
    burst: Annotated[int, Field(ge=0)] = 0


class WebConfig(_Part):
    """The whole file. `basic_auth_users` maps a user to a bcrypt hash."""

    tls_server_config: Annotated[TlsServerConfig, _Mapping] = TlsServerConfig()
    http_server_config: Annotated[HttpServerConfig, _Mapping] = HttpServerConfig()
    rate_limit: Annotated[RateLimit, _Mapping] = RateLimit()
    basic_auth_users: Annotated[dict[Annotated[str, BeforeValidator(_text)], SecretStr], _Mapping] = {}


_SECTIONS: Mapping[str, type[_Part]] = {
    "tls_server_config": TlsServerConfig,
    "http_server_config": HttpServerConfig,
    "rate_limit": RateLimit,
}


def parse_webconfig(content: bytes, path: Path) -> WebConfig:
    """The configuration in a file's content; `path` is for the messages. Raises WebConfigError."""
    try:
        document = yaml.load(content.decode("utf-8"), Loader=StrictLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        # Only the loader's own words are told as they stand: the rest of YAML's may quote a secret.
        problem = str(getattr(error, "problem", ""))
        own = "given twice" in problem or "aliases" in problem
        cause = problem if own else "it is not YAML, or not UTF-8 text"
        raise WebConfigError(f"web config file {path}{where}: yaml: {cause}; correct it") from None
    if document is None:
        return WebConfig()
    if not isinstance(document, dict):
        raise WebConfigError(
            f"web config file {path}: yaml: its top is not keys with values; begin with a key like 'tls_server_config:'"
        )
    try:
        config = WebConfig.model_validate(document)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        problems = "\n".join(f"web config file {path}: {_problem(detail)}" for detail in details[:20])
        raise WebConfigError(problems) from None
    _check(config, path)
    return config


def read_webconfig(path: Path) -> WebConfig:
    """The configuration in the file. Raises WebConfigError where it cannot be read or is wrong."""
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        cause = (error.strerror or str(error)).lower()
        raise WebConfigError(f"web config file {path}: {cause}; check --web.config.file and its rights") from None
    if len(content) > _MOST_BYTES:
        raise WebConfigError(f"web config file {path}: is larger than {_MOST_BYTES} bytes; that is no web config file")
    return parse_webconfig(content, path)


def _problem(detail: ErrorDetails) -> str:
    """One line without the value, which may be a key or a password's hash."""
    *section, last = (str(part)[:80] for part in detail["loc"])
    key = ".".join((*section, last))
    if detail["type"] == "extra_forbidden":
        known = _SECTIONS[section[0]].model_fields if section else WebConfig.model_fields
        return f"yaml: unknown key {key}; the nearest is {nearest(last, known)}"
    cause = str(detail["msg"]).removeprefix("Value error, ").replace("Input should", "should")
    return f"yaml: {key}: {cause}; correct it"


def _check(config: WebConfig, path: Path) -> None:
    """What the toolkit checks beyond types. Raises WebConfigError."""
    problems: list[str] = []
    _check_tls(config.tls_server_config, problems)
    for name, value in config.http_server_config.headers.items():
        _check_header(name, value, problems)
    for user, hashed in config.basic_auth_users.items():
        _check_user(user, hashed.get_secret_value(), problems)
    if problems:
        raise WebConfigError("\n".join(f"web config file {path}: {problem}" for problem in problems))


def _check_tls(tls: TlsServerConfig, problems: list[str]) -> None:
    if tls.client_auth_type and tls.client_auth_type not in CLIENT_AUTH_TYPES:
        near = nearest(tls.client_auth_type, CLIENT_AUTH_TYPES)
        problems.append(f"invalid ClientAuth: {tls.client_auth_type[:60]!r} of client_auth_type; the nearest is {near}")
    if not tls.wanted:
        return
    if not (tls.cert or tls.cert_file):
        problems.append("missing one of cert or cert_file in tls_server_config; name the certificate")
    if not (tls.key.get_secret_value() or tls.key_file):
        problems.append("missing one of key or key_file in tls_server_config; name the certificate's key")
    if (tls.client_ca or tls.client_ca_file) and tls.client_auth_type in ("", "NoClientCert"):
        problems.append(
            "client CA's have been configured without a Client Auth Policy; "
            "set client_auth_type, to RequireAndVerifyClientCert if in doubt"
        )


def _check_header(name: str, value: str, problems: list[str]) -> None:
    if name not in HEADERS:
        problems.append(f'HTTP header "{name[:60]}" can not be configured; these can: {", ".join(HEADERS)}')
    elif HEADERS[name] and value not in HEADERS[name]:
        problems.append(f"invalid value for {name}; expected one of {', '.join(HEADERS[name])}")
    elif not value.isprintable() or not value.isascii():
        problems.append(f"invalid value for {name}: it holds a character that a header cannot have")


def _check_user(user: str, hashed: str, problems: list[str]) -> None:
    found = _BCRYPT.fullmatch(hashed)
    if not found or not 4 <= int(found[1]) <= 31:
        short = "hashedSecret too short to be a bcrypted password" if len(hashed) < 59 else "not a bcrypted password"
        problems.append(f"basic_auth_users.{user[:60]}: {short}; make one with: htpasswd -nBC 10 '' | tr -d ':'")


def resolved(path: Path, name: str) -> Path:
    """A file that the web config file at `path` names, relative to its folder."""
    return path.parent / name


def describe(config: WebConfig) -> dict[str, Any]:
    """What is on, for the log; no secret."""
    tls = config.tls_server_config
    return {
        "tls": tls.wanted,
        "client_auth": tls.client_auth_type or "NoClientCert",
        "users": len(config.basic_auth_users),
        "rate_limit": config.rate_limit.interval > 0,
    }

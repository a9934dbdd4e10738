"""The settings of virtgauge: declared once, spelled three ways.

`sampling.max_age` is the flag `--sampling.max-age`, the YAML `sampling: {max_age: ...}` and the variable
`VIRTGAUGE_SAMPLING_MAX_AGE`; flag wins over environment over file. Durations are seconds. A new setting is one
field here; a new section is one class and one line in `Settings`. `exporter.setting_loading` reads them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator

from exporter.listening import ListenAddress
from exporter.metadata_labels import MetadataLabel, metadata_labels, parse_metadata_label, parse_namespace
from exporter.setting_types import (
    SECRET,
    ArchiveUri,
    Duration,
    FilePath,
    LibvirtUri,
    ListenAddresses,
    MigrationDestination,
    Regex,
    Size,
    TelemetryPath,
    distinct_destinations,
    parse_list,
    parse_off,
)


class Section(BaseModel):
    """A group of settings: frozen, strict about types and keys."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class LibvirtSettings(Section):
    uri: LibvirtUri | None = Field(
        default=None,
        description="libvirt connection URI, like qemu:///system.",
        json_schema_extra={"default_text": "LIBVIRT_DEFAULT_URI, else qemu:///system", "may_hold_password": True},
    )


class WebConfigSettings(Section):
    file: FilePath | None = Field(
        default=None, description="Prometheus web configuration file: TLS, passwords, headers, rate limit."
    )


class WebSettings(Section):
    listen_address: ListenAddresses = Field(
        default=(ListenAddress("", 9177),),
        description="Address to listen on, :9177, [::1]:9177 or unix:/run/virtgauge.sock; repeatable.",
    )
    systemd_socket: bool = Field(
        default=False, description="Take the listening sockets from systemd instead of binding addresses."
    )
    config: WebConfigSettings = WebConfigSettings()
    max_requests: int = Field(
        default=40, ge=0, description="Requests answered at the same time, 503 for more; 0 for no limit."
    )
    telemetry_path: TelemetryPath = Field(default="/metrics", description="URL path of the metrics page.")
    disable_exporter_metrics: bool = Field(default=False, description="Leave out the exporter's own process metrics.")
    token_file: FilePath | None = Field(
        default=None,
        description="File of the APIs' bearer tokens, hashed; `virtgauge token` writes it.",
        json_schema_extra={"default_text": "tokens.yml in the state folder"},
    )


class CollectorSettings(Section):
    """`enabled` is what the switches add up to; `known` maps every collector's name to whether it is enabled."""

    disable_defaults: bool = Field(default=False, description="Turn all collectors off that are not turned on by name.")
    known: dict[str, bool] = Field(default_factory=dict, exclude=True)

    @property
    def enabled(self) -> frozenset[str]:
        return frozenset(name for name, on in self.known.items() if on)


class LogSettings(Section):
    level: Literal["debug", "info", "warn", "error"] = Field(default="info", description="debug, info, warn or error.")
    format: Literal["logfmt", "json"] = Field(default="logfmt", description="logfmt or json.")


class ConfigSettings(Section):
    file: FilePath | None = Field(
        default=None, description="YAML file with settings.", json_schema_extra={"in_file": False}
    )
    check: bool = Field(
        default=False, description="Check the settings, print them and exit.", json_schema_extra={"in_file": False}
    )


class SamplingSettings(Section):
    max_age: Duration = Field(default=1.0, ge=0, le=60, description="A scrape gets a sample no older than this.")
    interval: Duration = Field(default=15.0, ge=1, le=3600, description="Time between recorded samples.")
    kernel: Annotated[Literal["auto", "off"], BeforeValidator(parse_off)] = Field(
        default="auto",
        description="auto reads CPU and interface counters from the kernel on a local host; off never does.",
    )
    lanes: int = Field(default=3, ge=2, le=4, description="Connections that sample at the same time, 2 to 4.")
    chunk: int = Field(default=16, ge=8, le=16, description="Domains asked for by one call, 8 to 16.")


class HostSettings(Section):
    name: str | None = Field(
        default=None,
        min_length=1,
        description="What people see as this host's name.",
        json_schema_extra={"default_text": "libvirt's host name"},
    )


class StateSettings(Section):
    directory: FilePath = Field(
        default=Path("/var/lib/virtgauge"),
        description="Folder for what must survive a restart.",
        json_schema_extra={"default_text": "/var/lib/virtgauge for root, else $XDG_STATE_HOME/virtgauge"},
    )


class CompatSettings(Section):
    names: Annotated[tuple[Literal["tinkoff", "inovex", "kumina"], ...], BeforeValidator(parse_list)] = Field(
        default=(),
        description="Also write another exporter's names where they differ: tinkoff, inovex, kumina; repeatable.",
    )


class ControlAgentSettings(Section):
    enabled: bool = Field(
        default=False, description="Ask the guest agents, and show what they tell on the control service's metrics."
    )
    period: Duration = Field(default=60.0, ge=5, le=86400, description="Time between two readings of a guest agent.")


class ControlSettings(Section):
    agent: ControlAgentSettings = ControlAgentSettings()
    listen_address: ListenAddresses = Field(
        default=(ListenAddress("127.0.0.1", 19177),),
        description="Address of the control API; repeatable.",
    )
    rules_file: FilePath | None = Field(
        default=None,
        description="Rules from alerts to operations; `virtgauge control rules` checks and tests it.",
        json_schema_extra={"default_text": "no rules, and no webhook"},
    )
    image_directory: Annotated[tuple[FilePath, ...], BeforeValidator(parse_list)] = Field(
        default=(Path("/var/lib/libvirt/images"),),
        description="Folder from which guests may be given disks, ISOs, kernels and seeds; repeatable.",
    )
    migration_destination: Annotated[
        tuple[MigrationDestination, ...], BeforeValidator(parse_list), AfterValidator(distinct_destinations)
    ] = Field(
        default=(),
        description="Host that guests may be migrated to: NAME=URI, or 'NAME=URI tcp://HOST' for the memory's way;"
        " repeatable.",
        json_schema_extra={"default_text": "none", "may_hold_password": True},
    )


class ArchiveSpoolSettings(Section):
    limit: Size = Field(
        default=8 << 30, ge=1 << 20, description="Most disk space for samples that the database does not have yet.",
        json_schema_extra={"default_text": "8GiB"},
    )
    full: Literal["oldest", "newest"] = Field(
        default="oldest", description="Which samples are dropped when the spool is full: oldest or newest."
    )


class ArchiveRetentionSettings(Section):
    raw: Duration = Field(default=7 * 86400.0, ge=3600, description="How long samples are kept.")
    five_minutes: Duration = Field(default=90 * 86400.0, ge=3600, description="How long 5-minute points are kept.")
    hourly: Duration = Field(default=730 * 86400.0, ge=3600, description="How long 1-hour points are kept.")


class ArchiveSettings(Section):
    uri: ArchiveUri | None = Field(
        default=None,
        description="MongoDB URI of the archive, or embedded for a server that virtgauge runs itself.",
        json_schema_extra={"default_text": "no archive", "may_hold_password": True},
    )
    database: str = Field(
        default="virtgauge", pattern=r"^[A-Za-z0-9_-]{1,63}$", description="Database that the archive is kept in."
    )
    username: str | None = Field(default=None, min_length=1, description="User name, if the URI names none.")
    password: Annotated[SecretStr | None, SECRET] = Field(default=None, description="Password of the user.")
    password_file: FilePath | None = Field(default=None, description="File that holds the password and nothing else.")
    window: Duration = Field(
        default=60.0, ge=10, le=300, multiple_of=1, description="Length of the time that one document covers."
    )
    partition: Literal["day", "hour"] = Field(
        default="day", description="What one collection of samples covers: day, or hour for many guests on embedded."
    )
    spool: ArchiveSpoolSettings = ArchiveSpoolSettings()
    retention: ArchiveRetentionSettings = ArchiveRetentionSettings()


class HistorySettings(Section):
    token: Annotated[SecretStr | None, SECRET] = Field(
        default=None, description="Bearer token that `virtgauge history` shows to the exporter it asks."
    )


class MetadataSettings(Section):
    """Labels of ``libvirt_domain_info`` besides those of the known clouds."""

    labels: Annotated[
        tuple[Annotated[str, BeforeValidator(parse_metadata_label)], ...], BeforeValidator(parse_list)
    ] = Field(
        default=(),
        description="Label read from the domains' metadata, LABEL=XPATH, like team=site:guest/site:team/@name;"
        " repeatable.",
    )
    namespaces: Annotated[
        tuple[Annotated[str, BeforeValidator(parse_namespace)], ...], BeforeValidator(parse_list)
    ] = Field(
        default=(),
        description="Prefix for those XPaths and its namespace, PREFIX=URI, like site=https://example.org/guests/1.0;"
        " repeatable.",
    )

    @property
    def mapped(self) -> tuple[MetadataLabel, ...]:
        """The labels, ready to be read."""
        return metadata_labels(self.labels, self.namespaces)

    @model_validator(mode="after")
    def _usable(self) -> Self:
        """Named at start, since a wrong path would only ever be an empty label."""
        metadata_labels(self.labels, self.namespaces)
        return self


class FilterSettings(Section):
    """Which domains and devices are watched; patterns match whole texts."""

    domain_include: Regex | None = Field(default=None, description="Watch only domains whose name matches.")
    domain_exclude: Regex | None = Field(default=None, description="Leave out domains whose name matches.")
    uuid_include: Regex | None = Field(default=None, description="Watch only domains whose UUID matches.")
    uuid_exclude: Regex | None = Field(default=None, description="Leave out domains whose UUID matches.")
    metadata_include: Regex | None = Field(
        default=None, description="Watch only domains with such metadata, like project_name=blue.*."
    )
    metadata_exclude: Regex | None = Field(
        default=None, description="Leave out domains with such metadata, like project_name=blue.*."
    )
    device_include: Regex | None = Field(default=None, description="Show only disks and interfaces whose name matches.")
    device_exclude: Regex | None = Field(default=None, description="Leave out disks and interfaces whose name matches.")
    max_series_per_domain: int = Field(
        default=0, ge=0, description="Leave out a domain with more series than this; 0 is no limit."
    )
    max_series: int = Field(
        default=0, ge=0, description="Leave out whole domains beyond this number of series; 0 is no limit."
    )


class Settings(Section):
    """All settings, checked; `load_settings` makes them. Frozen, so every thread may read them."""

    libvirt: LibvirtSettings = LibvirtSettings()
    web: WebSettings = WebSettings()
    collector: CollectorSettings = CollectorSettings()
    log: LogSettings = LogSettings()
    config: ConfigSettings = ConfigSettings()
    sampling: SamplingSettings = SamplingSettings()
    host: HostSettings = HostSettings()
    state: StateSettings = StateSettings()
    compat: CompatSettings = CompatSettings()
    metadata: MetadataSettings = MetadataSettings()
    filter: FilterSettings = FilterSettings()
    control: ControlSettings = ControlSettings()
    archive: ArchiveSettings = ArchiveSettings()
    history: HistorySettings = HistorySettings()

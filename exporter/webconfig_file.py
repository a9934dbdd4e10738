"""Keeps up with the web configuration file and the files it names, so that certificates and passwords rotate."""

from __future__ import annotations

import logging
import ssl
from contextlib import suppress
from pathlib import Path

from exporter.secret_files import warn_if_others_read
from exporter.webconfig import WebConfig, WebConfigError, describe, read_webconfig
from exporter.webconfig_tls import named_files, tls_context

_log = logging.getLogger(__name__)


class WebConfigFile:
    """The web configuration in effect. For the event loop's thread; each look costs a few stat calls.

    Where the file is broken after a change, requests are refused with 500 (as the toolkit does) until it is
    corrected. TLS goes on with the last context that was whole: certificate and key are two files, and between the
    two replacements of a rotation they do not fit.
    """

    def __init__(self, path: Path) -> None:
        """Reads everything. Raises WebConfigError: a wrong file is found at the start."""
        self._path = path
        self._seen = _identity(path)
        self._config: WebConfig | WebConfigError = read_webconfig(path)
        self._context: ssl.SSLContext | None = None
        self._context_of: tuple[object, ...] = ()
        self._told = ""
        self._allowed = self._config.tls_server_config.client_allowed_sans
        #: Whether TLS is on. Fixed at the start, as in the toolkit: a socket does not change its protocol.
        self.tls = self._config.tls_server_config.wanted
        if self.tls:
            self._context_of = self._tls_files()
            self._context = tls_context(self._config.tls_server_config, path)
        _log.info("web configuration", extra={"file": str(path), **describe(self._config)})
        self._warn_of_hashes(self._config)
        if "http2" in self._config.http_server_config.model_fields_set and self._config.http_server_config.http2:
            _log.info("http_server_config.http2 has no effect: HTTP/1.1 is served, HTTP/2 is not offered",
                      extra={"file": str(path)})  # fmt: skip

    def config(self) -> WebConfig:
        """What the file says now. Raises WebConfigError where it is broken, or turns TLS on or off."""
        seen = _identity(self._path)
        if seen != self._seen:
            self._seen = seen
            try:
                self._config = read_webconfig(self._path)
                if self._config.tls_server_config.wanted != self.tls:
                    raise WebConfigError(
                        f"web config file {self._path}: TLS was turned {'off' if self.tls else 'on'}, which needs a "
                        "restart; restart virtgauge"
                    )
                _log.info("web configuration read again", extra={"file": str(self._path), **describe(self._config)})
                self._warn_of_hashes(self._config)
            except WebConfigError as error:
                self._config = error
                _log.error("requests get 500 until the web configuration is corrected", extra={"cause": str(error)})
        if isinstance(self._config, WebConfigError):
            # A new one each time: raising the kept one again would add to its traceback for ever.
            raise WebConfigError(str(self._config))
        return self._config

    def context(self) -> ssl.SSLContext | None:
        """The TLS context for a connection that begins now; None where TLS is off. Raises nothing."""
        if not self.tls:
            return None
        try:
            tls = self.config().tls_server_config
            files = self._tls_files()
            if files != self._context_of:
                self._context = tls_context(tls, self._path)
                self._context_of = files
                self._told = ""
                _log.info("certificate read again", extra={"file": str(self._path)})
        except WebConfigError as error:
            # Tried again at the next connection: the other file of the pair may be there by then.
            if str(error) != self._told:
                self._told = str(error)
                _log.warning("TLS goes on with the last whole certificate", extra={"cause": str(error)})
        return self._context

    def allowed_names(self) -> tuple[str, ...]:
        """The names of which a client's certificate must have one; empty where any will do. Raises nothing.

        Where the file is broken, those of before: who enters by them gets a 500.
        """
        with suppress(WebConfigError):
            self._allowed = self.config().tls_server_config.client_allowed_sans
        return self._allowed

    def _warn_of_hashes(self, config: WebConfig) -> None:
        if config.basic_auth_users:
            warn_if_others_read(self._path, "the hashes of passwords, from which these can be guessed without a trace")

    def _tls_files(self) -> tuple[object, ...]:
        assert isinstance(self._config, WebConfig)
        files = named_files(self._config.tls_server_config, self._path)
        # The section too: versions, ciphers and inline certificates come from it.
        return (self._config.tls_server_config, *(_identity(file) for file in files))


def _identity(path: Path) -> tuple[int, ...]:
    """What changes with the file's content; empty where there is none. Follows links, as Kubernetes rotates them."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

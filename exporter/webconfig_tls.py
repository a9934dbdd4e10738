"""TLS contexts from the web configuration, and the check of a client certificate's names."""

from __future__ import annotations

import logging
import os
import ssl
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from exporter.secret_files import warn_if_others_read
from exporter.webconfig import TlsServerConfig, WebConfigError, resolved
from exporter.webconfig_tls_names import CIPHERS, CLIENT_AUTH_TYPES, CURVES, TLS_VERSIONS

_log = logging.getLogger(__name__)


def tls_context(tls: TlsServerConfig, path: Path) -> ssl.SSLContext:
    """A server's context for `tls_server_config` of the file at `path`.

    Raises WebConfigError where a file is missing or does not fit, or Python's ssl cannot do what is asked.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # Go has none of these either; renegotiation and compression are known ways to spend a server's time.
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(["http/1.1"])
    _set_versions(context, tls, path)
    _set_ciphers(context, tls, path)
    _set_curves(context, tls, path)
    _set_client_check(context, tls, path)
    _load_pair(context, tls, path)
    return context


def named_files(tls: TlsServerConfig, path: Path) -> list[Path]:
    """The files that the context is made from, besides the configuration itself."""
    names = (tls.cert_file, tls.key_file, tls.client_ca_file)
    return [resolved(path, name) for name in names if name]


def _set_versions(context: ssl.SSLContext, tls: TlsServerConfig, path: Path) -> None:
    least, most = TLS_VERSIONS[tls.min_version], TLS_VERSIONS[tls.max_version]
    if least > most:
        raise WebConfigError(
            f"web config file {path}: no supported versions satisfy MinVersion and MaxVersion: min_version "
            f"{tls.min_version} is above max_version {tls.max_version}; exchange them"
        )
    with warnings.catch_warnings():
        # Python's warning is for programmers; the operator's is in the log.
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version, context.maximum_version = least, most
    if least < ssl.TLSVersion.TLSv1_2:
        _log.warning("TLS below 1.2 can be broken by an attacker; set min_version: TLS12", extra={"file": str(path)})


def _set_ciphers(context: ssl.SSLContext, tls: TlsServerConfig, path: Path) -> None:
    # OpenSSL calls everything below TLS 1.2 insecure from its security level 1 on.
    level = "@SECLEVEL=0" if TLS_VERSIONS[tls.min_version] < ssl.TLSVersion.TLSv1_2 else ""
    names = [name for suite in tls.cipher_suites if (name := CIPHERS[suite])]
    if tls.cipher_suites and not names:
        if TLS_VERSIONS[tls.max_version] < ssl.TLSVersion.TLSv1_3:
            raise WebConfigError(
                f"web config file {path}: cipher_suites has only those of TLS 1.3, but max_version is "
                f"{tls.max_version}; add a cipher of TLS 1.2"
            )
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        return
    try:
        if names or level:
            context.set_ciphers(":".join([*(names or ["DEFAULT"]), *([level] if level else [])]))
    except ssl.SSLError:
        raise WebConfigError(
            f"web config file {path}: this machine's OpenSSL has none of the cipher_suites; name others"
        ) from None
    # Go does not look at this key any more; OpenSSL does.
    if not tls.prefer_server_cipher_suites:
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE


def _set_curves(context: ssl.SSLContext, tls: TlsServerConfig, path: Path) -> None:
    curves = dict.fromkeys(tls.curve_preferences)
    # All of them are what OpenSSL offers by itself; Go does not look at their order any more.
    if not curves or set(curves) == set(CURVES):
        return
    if len(curves) > 1:
        raise WebConfigError(
            f"web config file {path}: curve_preferences: Python's ssl can be limited to one curve or to none; "
            f"name one, all of {', '.join(CURVES)}, or leave the key out"
        )
    context.set_ecdh_curve(CURVES[next(iter(curves))])


def _set_client_check(context: ssl.SSLContext, tls: TlsServerConfig, path: Path) -> None:
    mode = CLIENT_AUTH_TYPES[tls.client_auth_type]
    if mode is None:
        raise WebConfigError(
            f"web config file {path}: client_auth_type {tls.client_auth_type} takes any certificate without checking "
            "it, which Python's ssl does not do; use VerifyClientCertIfGiven or RequireAndVerifyClientCert"
        )
    context.verify_mode = mode
    if mode is ssl.CERT_NONE:
        if tls.client_allowed_sans:
            _log.warning("client_allowed_sans has no effect without client_auth_type", extra={"file": str(path)})
        return
    if not (tls.client_ca_file or tls.client_ca):
        # As Go does: any authority that this machine trusts.
        context.load_default_certs(ssl.Purpose.CLIENT_AUTH)
        _log.warning("no client_ca_file: a client certificate of any public authority will do",
                     extra={"file": str(path)})  # fmt: skip
        return
    where = f"client_ca_file {resolved(path, tls.client_ca_file)}" if tls.client_ca_file else "client_ca"
    authorities = _content(path, where, tls.client_ca_file) if tls.client_ca_file else tls.client_ca
    try:
        context.load_verify_locations(cadata=authorities)
    except (ssl.SSLError, ValueError):
        raise WebConfigError(f"web config file {path}: {where}: holds no PEM certificate; correct it") from None


def _content(path: Path, where: str, name: str) -> str:
    try:
        return resolved(path, name).read_text("ascii", errors="replace")
    except OSError as error:
        cause = (error.strerror or str(error)).lower()
        raise WebConfigError(f"web config file {path}: {where}: {cause}; correct the name or its rights") from None


def _load_pair(context: ssl.SSLContext, tls: TlsServerConfig, path: Path) -> None:
    """The certificate and its key. A file wins over text, as in the toolkit."""
    cert_where = f"cert_file {resolved(path, tls.cert_file)}" if tls.cert_file else "cert"
    key_where = f"key_file {resolved(path, tls.key_file)}" if tls.key_file else "key"
    cert = _content(path, cert_where, tls.cert_file) if tls.cert_file else tls.cert
    key = _content(path, key_where, tls.key_file) if tls.key_file else tls.key.get_secret_value()
    warn_if_others_read(resolved(path, tls.key_file) if tls.key_file else path, "the certificate's key")
    with ExitStack() as stack:
        try:
            # Without the question for a passphrase, which OpenSSL would put to the terminal.
            context.load_cert_chain(
                stack.enter_context(_as_file(cert)), stack.enter_context(_as_file(key)), password=_no_passphrase
            )
        except (ssl.SSLError, ValueError, OSError) as error:
            cause = getattr(error, "reason", None) or "NOT_PEM"
            raise WebConfigError(
                f"web config file {path}: failed to load X509KeyPair: {cert_where} and {key_where} do not fit "
                f"({cause}); both must be PEM, unencrypted, and belong together"
            ) from None


def _no_passphrase() -> str:
    raise ValueError("the key is encrypted")


@contextmanager
def _as_file(text: str) -> Iterator[str]:
    """A file in memory, since Python's ssl loads pairs by name only; nobody else sees it and no disk holds it."""
    descriptor = os.memfd_create("virtgauge", os.MFD_CLOEXEC)
    try:
        content = text.encode()
        while content:
            content = content[os.write(descriptor, content) :]
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)

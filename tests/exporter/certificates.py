"""Certificates for the tests, made by the openssl command: an authority, a server, clients."""

from __future__ import annotations

import subprocess
from pathlib import Path


def authority(folder: Path, name: str = "ca") -> None:
    """Makes folder/NAME.pem and NAME.key, which sign others."""
    _openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
             "-subj", f"/CN={name}", "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem")  # fmt: skip


def signed(folder: Path, name: str, san: str, ca: str = "ca", key: tuple[str, ...] | None = None) -> None:
    """Makes folder/NAME.pem and NAME.key, signed by `ca`, for the names `san`, like DNS:localhost,IP:127.0.0.1."""
    kind = key or ("ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
    request = folder / f"{name}.csr"
    _openssl("req", "-newkey", *kind, "-nodes", "-subj", f"/CN={name}", "-addext", f"subjectAltName={san}",
             "-keyout", folder / f"{name}.key", "-out", request)  # fmt: skip
    _openssl("x509", "-req", "-in", request, "-CA", folder / f"{ca}.pem", "-CAkey", folder / f"{ca}.key", "-days", "2",
             "-copy_extensions", "copy", "-out", folder / f"{name}.pem")  # fmt: skip


def _openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=60)

"""A cloud-init seed: the NoCloud data source, an ISO labelled `cidata` with user-data and meta-data.

Source: cloud-init's documentation of NoCloud. The user data may hold passwords: file 0600 in a folder that only root
lists, never in the audit trail.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

_HEADER = "#cloud-config\n"


def user_data(hostname: str, ssh_keys: tuple[str, ...]) -> str:
    """A cloud-config that sets the host name and the default user's keys."""
    import yaml  # here, as pycdlib below: dozens of milliseconds of every command's start otherwise

    config: dict[str, object] = {"hostname": hostname}
    if ssh_keys:
        config["ssh_authorized_keys"] = list(ssh_keys)
    return _HEADER + yaml.safe_dump(config)


def write_seed(file: Path, user_data_text: str, instance_id: str, hostname: str) -> None:
    """Writes the seed, replacing an older one whole. Raises OSError."""
    import yaml

    meta_data = yaml.safe_dump({"instance-id": instance_id, "local-hostname": hostname})
    part = file.with_suffix(".part")
    part.unlink(missing_ok=True)
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as image:
        image.write(_iso({"user-data": user_data_text.encode(), "meta-data": meta_data.encode()}))
    part.rename(file)


def _iso(files: dict[str, bytes]) -> bytes:
    import pycdlib

    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident="cidata")
    for name, content in files.items():
        # ISO 9660's own names know no hyphen; Rock Ridge and Joliet hold the real ones.
        plain = name.replace("-", "_").upper()
        iso.add_fp(
            io.BytesIO(content), len(content), f"/{plain}.;1", rr_name=name, joliet_path=f"/{name}"
        )
    written = io.BytesIO()
    iso.write_fp(written)
    iso.close()
    return written.getvalue()

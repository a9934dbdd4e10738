"""The cloud-init seed, read back by other programs than the one that wrote it."""

from __future__ import annotations

import io
import shutil
import subprocess

import pycdlib
import pytest
import yaml

from exporter.control.seed import user_data, write_seed


@pytest.fixture
def seed(tmp_path):
    file = tmp_path / "seed.iso"
    write_seed(file, user_data("web1", ("ssh-ed25519 AAAA 'x': \"y\"",)), "i-1", "web1")
    return file


@pytest.mark.parametrize("way", ["rr_path", "joliet_path"])
def test_both_files_under_their_names(seed, way):
    iso = pycdlib.PyCdlib()
    iso.open(str(seed))
    found = {}
    for name in ("user-data", "meta-data"):
        content = io.BytesIO()
        iso.get_file_from_iso_fp(content, **{way: f"/{name}"})
        found[name] = yaml.safe_load(content.getvalue())
    iso.close()
    assert found["meta-data"] == {"instance-id": "i-1", "local-hostname": "web1"}
    assert found["user-data"] == {"hostname": "web1", "ssh_authorized_keys": ["ssh-ed25519 AAAA 'x': \"y\""]}


@pytest.mark.skipif(shutil.which("blkid") is None, reason="blkid is not installed")
def test_blkid_sees_the_label_that_cloud_init_looks_for(seed):
    told = subprocess.run(["blkid", "-p", "-o", "export", str(seed)], capture_output=True, text=True, check=True)
    assert "LABEL=cidata" in told.stdout
    assert "TYPE=iso9660" in told.stdout


def test_it_is_private_and_replaced_whole(seed):
    assert seed.stat().st_mode & 0o077 == 0
    write_seed(seed, "#cloud-config\n{}\n", "i-2", "web2")
    assert b"i-2" in seed.read_bytes()
    assert b"i-1" not in seed.read_bytes()

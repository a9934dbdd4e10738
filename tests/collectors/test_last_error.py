"""No exception loses libvirt's code to a handle that is freed on its way."""

from __future__ import annotations

import threading

import libvirt
import pytest

from collectors.connection import start_event_loop

libvirtmod = libvirt.libvirtmod


@pytest.fixture
def connection():
    start_event_loop()
    opened = libvirt.open("test:///default")
    yield opened
    opened.close()


@pytest.fixture
def frees_on_failure(monkeypatch, connection):
    """Each failed look-up by name frees a handle before its exception is made, as Python's collector may."""
    look_up = libvirtmod.virDomainLookupByName
    spare = []

    def looked_up(*asked):
        spare.append(connection.lookupByID(1))
        found = look_up(*asked)
        spare.clear()
        return found

    monkeypatch.setattr(libvirtmod, "virDomainLookupByName", looked_up)


@pytest.mark.usefixtures("frees_on_failure")
def test_a_handle_freed_on_the_way_costs_no_code(connection):
    with pytest.raises(libvirt.libvirtError, match="Domain not found") as raised:
        connection.lookupByName("nobody")
    assert raised.value.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN
    assert raised.value.get_error_domain() == libvirt.VIR_FROM_TEST


def test_an_error_is_told_once(connection):
    with pytest.raises(libvirt.libvirtError):
        connection.lookupByName("nobody")
    libvirtmod.virResetLastError()
    assert libvirt.libvirtError("none of libvirt's").get_error_code() is None


@pytest.mark.usefixtures("frees_on_failure")
def test_each_thread_has_its_own(connection):
    codes = []

    def ask():
        codes.append(libvirt.libvirtError("none of libvirt's").get_error_code())

    try:
        connection.lookupByName("nobody")
    except libvirt.libvirtError as error:
        codes.append(error.get_error_code())
    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert codes == [libvirt.VIR_ERR_NO_DOMAIN, None]

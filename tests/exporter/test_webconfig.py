"""The web configuration file: good and bad ones of the exporters' toolkit, each with its error."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from contextlib import suppress

import bcrypt
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from exporter.client_names import has_allowed_name
from exporter.webconfig import HEADERS, WebConfig, WebConfigError, parse_go_duration, parse_webconfig, read_webconfig
from exporter.webconfig_file import WebConfigFile
from exporter.webconfig_tls import tls_context
from exporter.webconfig_tls_names import CIPHERS, CURVES
from tests.exporter import certificates

HASH = "$2y$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG"
PAIR = "tls_server_config: {cert_file: server.pem, key_file: server.key"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("tls")
    certificates.authority(made)
    certificates.signed(made, "server", "DNS:localhost,IP:127.0.0.1,IP:::1")
    certificates.signed(made, "other", "DNS:other.example")
    (made / "empty.pem").write_text("")
    return made


def loaded(folder, text):
    """As a service does at its start: the file, and what it names."""
    path = folder / "web.yml"
    path.write_text(text)
    return WebConfigFile(path)


GOOD = {
    "empty": "",
    "only a comment": "# nothing\n",
    "an empty section": "tls_server_config:\nhttp_server_config:\nbasic_auth_users:\nrate_limit:\n",
    "noAuth": PAIR + "}",
    "NoClientCert": PAIR + ", client_auth_type: NoClientCert}",
    "VerifyClientCertIfGiven": PAIR + ", client_ca_file: ca.pem, client_auth_type: VerifyClientCertIfGiven}",
    "RequireAndVerify": PAIR + ", client_ca_file: ca.pem, client_auth_type: RequireAndVerifyClientCert}",
    "allowed SANs": PAIR
    + ", client_ca_file: ca.pem, client_auth_type: RequireAndVerifyClientCert, client_allowed_sans: [a, b]}",
    "all ciphers": PAIR + f", cipher_suites: [{', '.join(CIPHERS)}]}}",
    "some ciphers": PAIR + ", cipher_suites: [TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256]}",
    "ciphers without order": PAIR
    + ", cipher_suites: [TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256], prefer_server_cipher_suites: false}",
    "ciphers of TLS 1.3 only": PAIR + ", cipher_suites: [TLS_AES_128_GCM_SHA256]}",
    "all curves": PAIR + f", curve_preferences: [{', '.join(CURVES)}]}}",
    "one curve": PAIR + ", curve_preferences: [CurveP521]}",
    "versions": PAIR + ", min_version: TLS13, max_version: TLS13}",
    "old versions": PAIR + ", min_version: TLS10, max_version: TLS12}",
    "no HTTP/2": PAIR + "}\nhttp_server_config: {http2: false}",
    "users": PAIR + f"}}\nbasic_auth_users: {{alice: {HASH}, bob: {HASH}}}",
    "users without TLS": f"basic_auth_users: {{alice: {HASH}, 17: {HASH}}}",
    "headers": "http_server_config: {headers: {Strict-Transport-Security: max-age=1, X-Content-Type-Options: nosniff,"
    " X-Frame-Options: deny, X-XSS-Protection: 0, Content-Security-Policy: default-src 'self'}}",
    "rate limit": "rate_limit: {interval: 1s, burst: 5}",
    "rate limit in nanoseconds": "rate_limit: {interval: 1000000000}",
    "no rate limit": "rate_limit: {interval: 0, burst: 0}",
}


@pytest.mark.parametrize("name", GOOD)
def test_good_files(folder, name):
    file = loaded(folder, GOOD[name])
    assert isinstance(file.config(), WebConfig)
    assert (file.context() is not None) is (PAIR in GOOD[name])


BAD = {
    "junk": ("hello", "yaml: its top is not keys with values"),
    "junk list": ("- a", "yaml: its top"),
    "not YAML": ("tls_server_config: [", "yaml: it is not YAML"),
    "a tab": ("tls_server_config:\n\tcert: x", "line 2, column 1: yaml"),
    "a key twice": ("rate_limit: {}\nrate_limit: {}", "'rate_limit' is given twice"),
    "an invented key": ("hello: 1", "yaml: unknown key hello; the nearest is"),
    "a key misspelt": (PAIR + ", min_versoin: TLS12}", "key tls_server_config.min_versoin; the nearest is min_v"),
    "an invented HTTP key": ("http_server_config: {http3: true}", "unknown key http_server_config.http3; the nearest"),
    "an invented rate key": ("rate_limit: {bursts: 1}", "unknown key rate_limit.bursts; the nearest is burst"),
    "no certificate": ("tls_server_config: {key_file: server.key}", "missing one of cert or cert_file"),
    "empty certificate": ("tls_server_config: {cert: '', key_file: server.key}", "missing one of cert or cert_file"),
    "no key": ("tls_server_config: {cert_file: server.pem}", "missing one of key or key_file"),
    "empty key": ("tls_server_config: {cert_file: server.pem, key: ''}", "missing one of key or key_file"),
    "only a client CA": ("tls_server_config: {client_ca_file: ca.pem}", "missing one of cert or cert_file"),
    "only a client check": ("tls_server_config: {client_auth_type: NoClientCert}", "missing one of cert or cert_file"),
    "certificate not there": ("tls_server_config: {cert_file: nope.pem, key_file: server.key}", "no such file"),
    "key not there": ("tls_server_config: {cert_file: server.pem, key_file: nope.key}", "no such file"),
    "certificate is a folder": ("tls_server_config: {cert_file: ., key_file: server.key}", "is a directory"),
    "not a pair": ("tls_server_config: {cert_file: server.pem, key_file: other.key}", "failed to load X509KeyPair"),
    "not PEM": ("tls_server_config: {cert: planted-secret, key: planted-secret}", "failed to load X509KeyPair"),
    "empty PEM": ("tls_server_config: {cert_file: empty.pem, key_file: server.key}", "failed to load X509KeyPair"),
    "CA without policy": (PAIR + ", client_ca_file: ca.pem}", "client CA's have been configured without a Client Auth"),
    "CA with NoClientCert": (PAIR + ", client_ca: x, client_auth_type: NoClientCert}", "without a Client Auth Policy"),
    "CA not there": (PAIR + ", client_ca_file: nope.pem, client_auth_type: VerifyClientCertIfGiven}", "no such file"),
    "CA empty": (PAIR + ", client_ca_file: empty.pem, client_auth_type: VerifyClientCertIfGiven}", "holds no PEM"),
    "CA no certificate": (PAIR + ", client_ca: hello, client_auth_type: VerifyClientCertIfGiven}", "holds no PEM"),
    "invented client check": (PAIR + ", client_auth_type: Sometimes}", "invalid ClientAuth: 'Sometimes'"),
    "RequestClientCert": (PAIR + ", client_auth_type: RequestClientCert}", "Python's ssl does not do; use Verify"),
    "RequireAnyClientCert": (PAIR + ", client_auth_type: RequireAnyClientCert}", "which Python's ssl does not do"),
    "RequireClientCert": (PAIR + ", client_auth_type: RequireClientCert}", "which Python's ssl does not do"),
    "invented version": (PAIR + ", min_version: TLS111}", "unknown TLS version: 'TLS111'; the nearest is TLS11"),
    "versions exchanged": (PAIR + ", min_version: TLS13, max_version: TLS12}", "no supported versions satisfy"),
    "invented cipher": (PAIR + ", cipher_suites: [TLS_RSA_WITH_FOO]}", "unknown cipher: 'TLS_RSA_WITH_FOO'"),
    "OpenSSL's cipher": (PAIR + ", cipher_suites: [AES128-SHA]}", "unknown cipher"),
    "ciphers of no version": (PAIR + ", cipher_suites: [TLS_AES_128_GCM_SHA256], max_version: TLS12}", "of TLS 1.2"),
    "invented curve": (PAIR + ", curve_preferences: [CurveP257]}", "unknown curve: 'CurveP257'; the nearest is"),
    "two curves": (PAIR + ", curve_preferences: [CurveP256, X25519]}", "limited to one curve or to none; name one"),
    "password in clear": ("basic_auth_users: {alice: planted-secret}", "alice: hashedSecret too short to be a bcrypt"),
    "no bcrypt": (f"basic_auth_users: {{alice: {'planted-secret' * 5}}}", "basic_auth_users.alice: not a bcrypted"),
    "bcrypt cost": (f"basic_auth_users: {{a: {HASH.replace('$10$', '$99$')}}}", "basic_auth_users.a: not a bcrypted"),
    "users as a list": ("basic_auth_users: [alice]", "yaml: basic_auth_users: should be a valid dict"),
    "password null": ("basic_auth_users: {alice: }", "yaml: basic_auth_users.alice: should be a valid string"),
    "header not allowed": ("http_server_config: {headers: {X-Foo: 1}}", 'HTTP header "X-Foo" can not be configured'),
    "header in small letters": ("http_server_config: {headers: {x-frame-options: deny}}", "can not be configured"),
    "content type options": ("http_server_config: {headers: {X-Content-Type-Options: x}}", "invalid value for X-Con"),
    "frame options": ("http_server_config: {headers: {X-Frame-Options: DENY}}", "expected one of deny, sameorigin"),
    "header in two lines": ('http_server_config: {headers: {X-XSS-Protection: "0\\r\\nSet-Cookie: a"}}', "a character"),
    "rate no duration": ("rate_limit: {interval: soon}", "yaml: rate_limit.interval: is not a duration"),
    "rate negative": ("rate_limit: {burst: -1}", "rate_limit.burst: should be greater than or equal to 0"),
    "rate as text": ("rate_limit: {burst: '5'}", "rate_limit.burst: should be a valid integer"),
    "http2 as text": ("http_server_config: {http2: maybe}", "http_server_config.http2: should be a valid boolean"),
    "too large": ("#" * (1024 * 1024 + 1), "is larger than"),
    "nested too deep": ("[" * 5000, "yaml"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_name_file_and_cause_and_no_secret(folder, name):
    text, cause = BAD[name]
    with pytest.raises(WebConfigError) as caught:
        loaded(folder, text)
    assert cause in str(caught.value)
    for line in str(caught.value).splitlines():
        assert line.startswith(f"web config file {folder / 'web.yml'}")
    assert "planted-secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(WebConfigError, match=r"no such file.*--web\.config\.file"):
        read_webconfig(tmp_path / "nope.yml")


def test_inline_certificates_and_an_encrypted_key(folder):
    cert, key, ca = ((folder / name).read_text() for name in ("server.pem", "server.key", "ca.pem"))
    tls = {"cert": cert, "key": key, "client_ca": ca, "client_auth_type": "RequireAndVerifyClientCert"}
    assert loaded(folder, yaml.safe_dump({"tls_server_config": tls})).context().verify_mode is ssl.CERT_REQUIRED
    # A file wins over text.
    tls |= {"cert": "junk", "cert_file": "server.pem"}
    assert loaded(folder, yaml.safe_dump({"tls_server_config": tls})).context()
    subprocess.run(["openssl", "ec", "-in", folder / "server.key", "-aes128", "-passout", "pass:planted-secret",
                    "-out", folder / "locked.key"], check=True, capture_output=True)  # fmt: skip
    with pytest.raises(WebConfigError, match="unencrypted"):
        loaded(folder, "tls_server_config: {cert_file: server.pem, key_file: locked.key}")


def test_a_key_that_all_may_read_is_warned_of_through_a_link_too(folder, tmp_path, caplog):
    cert, key = folder / "server.pem", tmp_path / "server.key"
    shutil.copy(folder / "server.key", key)
    (tmp_path / "link.key").symlink_to(key)
    inline = yaml.safe_dump({"tls_server_config": {"cert": cert.read_text(), "key": key.read_text()}})
    for text, file in ((f"tls_server_config: {{cert_file: {cert}, key_file: link.key}}", key), (inline, None)):
        for mode in (0o600, 0o640, 0o644):
            caplog.clear()
            path = tmp_path / "web.yml"
            path.write_text(text)
            (file or path).chmod(mode)
            WebConfigFile(path)
            warned = [record for record in caplog.records if "can read the certificate's key" in record.message]
            assert len(warned) == (mode == 0o644)


def test_hashes_that_all_may_read_are_warned_of_when_the_file_changes_too(tmp_path, caplog):
    def warned():
        found = "can read the hashes of passwords, from which these can be guessed without a trace" in caplog.text
        caplog.clear()
        return found

    path = tmp_path / "web.yml"
    for mode in (0o600, 0o640, 0o644):
        path.write_text(f"basic_auth_users: {{alice: {HASH}}}")
        path.chmod(mode)
        file = WebConfigFile(path)
        assert warned() == (mode == 0o644)
    path.write_text("rate_limit: {burst: 3}")
    assert not file.config().basic_auth_users
    assert not warned()
    path.write_text(f"basic_auth_users: {{robert: {HASH}}}")
    assert file.config().basic_auth_users
    assert warned()
    file.config()
    assert not warned()  # once for each change


@pytest.mark.parametrize(("section", "told"), [("http2: true", True), ("http2: false", False), ("headers: {}", False)])
def test_http2_that_is_asked_for_by_name_is_told_to_have_no_effect(folder, caplog, section, told):
    caplog.set_level("INFO")
    (folder / "web.yml").write_text(f"http_server_config: {{{section}}}")
    WebConfigFile(folder / "web.yml")
    assert ("HTTP/2 is not offered" in caplog.text) == told


def test_all_mistakes_are_told_at_once(folder):
    text = "tls_server_config: {key_file: a}\nhttp_server_config: {headers: {A: b}}\nbasic_auth_users: {x: y}"
    with pytest.raises(WebConfigError) as caught:
        loaded(folder, text)
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs Prometheus' promtool")
@pytest.mark.parametrize("name", [n for n in GOOD if "rate" not in n and n != "allowed SANs" and "empty sect" not in n])
def test_what_is_good_here_is_good_for_prometheus(folder, name):
    (folder / "web.yml").write_text(GOOD[name].replace("TLS_RSA_WITH_AES_128_CBC_SHA, ", ""))
    done = subprocess.run(["promtool", "check", "web-config", folder / "web.yml"], capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode == 0 or "unknown cipher" in done.stderr, done.stderr


# What Python's ssl cannot do, Prometheus can.
OURS = {"RequestClientCert", "RequireAnyClientCert", "RequireClientCert", "two curves", "versions exchanged",
        "ciphers of no version", "header in two lines", "bcrypt cost", "too large", "CA empty", "CA no certificate",
        "no bcrypt", "password null"}  # fmt: skip


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs Prometheus' promtool")
@pytest.mark.parametrize("name", [name for name in BAD if name not in OURS and "rate" not in name])
def test_what_is_bad_here_is_bad_for_prometheus(folder, name):
    (folder / "web.yml").write_text(BAD[name][0])
    done = subprocess.run(["promtool", "check", "web-config", folder / "web.yml"], capture_output=True, check=False)
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1), ("1m30s", 90), ("500ms", 0.5), ("1.5h", 5400), (".5s", 0.5), ("0", 0), (0, 0), (1500, 1.5e-6),
     ("2us", 2e-6), ("3µs", 3e-6), ("+1s", 1)],
)  # fmt: skip
def test_go_durations(text, seconds):
    assert parse_go_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "1", "s", "1d", "1 s", "-1s", "1s1", True, None, 1.5, [], "1e3s", "1s " * 2])
def test_what_is_no_go_duration(text):
    with pytest.raises(ValueError, match="not a duration"):
        parse_go_duration(text)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_configuration_or_its_error(content):
    with suppress(WebConfigError):
        assert isinstance(parse_webconfig(content, FUZZED), WebConfig)


FUZZED = __import__("pathlib").Path("/nonexistent/web.yml")
TEXTS = st.one_of(st.text(), st.none(), st.integers(), st.booleans(), st.lists(st.text(), max_size=2))
KEYS = st.sampled_from([*WebConfig.model_fields, "cert", "key", "headers", "interval", "burst", *HEADERS])


@given(st.recursive(TEXTS, lambda inner: st.dictionaries(st.one_of(KEYS, st.text()), inner, max_size=4), max_leaves=12))
def test_any_tree_is_a_configuration_or_its_error(tree):
    with suppress(WebConfigError):
        config = parse_webconfig(yaml.safe_dump(tree).encode(), FUZZED)
        if config.tls_server_config.wanted:
            tls_context(config.tls_server_config, FUZZED)


@pytest.mark.parametrize(
    ("allowed", "sans", "enters"),
    [
        ((), (("DNS", "a"),), True),
        (("a",), (("DNS", "a"), ("DNS", "b")), True),
        (("c",), (("DNS", "a"), ("DNS", "b")), False),
        (("a@b",), (("email", "a@b"),), True),
        (("spiffe://a/b",), (("URI", "spiffe://a/b"),), True),
        (("::1",), (("IP Address", "0:0:0:0:0:0:0:1"),), True),
        (("10.0.0.1",), (("IP Address", "10.0.0.1"),), True),
        (("*.example",), (("DNS", "a.example"),), False),
        (("A",), (("DNS", "a"),), False),
        (("a",), (("othername", "a"),), False),
        (("a",), (), False),
    ],
)
def test_allowed_names(allowed, sans, enters):
    assert has_allowed_name({"subject": (), "subjectAltName": sans}, allowed) is enters


def test_a_certificate_that_was_not_given_is_let_in_where_it_may_be_absent():
    assert has_allowed_name(None, ("a",))
    assert has_allowed_name({}, ("a",))


def test_the_hash_of_these_tests_is_a_hash():
    assert bcrypt.checkpw(b"x", bcrypt.hashpw(b"x", bcrypt.gensalt(4)))

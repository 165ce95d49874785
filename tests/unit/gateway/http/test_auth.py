"""gateway.http.auth: who may talk to the server."""

from __future__ import annotations

import pytest

from gateway.http.auth import AccessRules, host_name, name_of_key
from supervisor.errors import Forbidden, InvalidAPIKey


def rules(
    *,
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "::1"),
    origins: tuple[str, ...] = (),
) -> AccessRules:
    return AccessRules.of(hosts, origins)


@pytest.mark.parametrize(
    ("authority", "name"),
    [
        ("localhost", "localhost"),
        ("LocalHost:11435", "localhost"),
        ("127.0.0.1:80", "127.0.0.1"),
        ("[::1]:11435", "::1"),
        ("[::1]", "::1"),
        ("[FE80::1]:1", "fe80::1"),
        ("::1", "::1"),
        ("FE80::2", "fe80::2"),
        ("evil.example:80", "evil.example"),
        ("", ""),
        (":80", ""),
    ],
)
def test_a_hosts_name_is_without_port_and_brackets(authority: str, name: str) -> None:
    assert host_name(authority) == name


@pytest.mark.parametrize(
    "host", [None, "localhost", "LOCALHOST:11435", "127.0.0.1:5", "[::1]:11435", "[::1]"]
)
def test_a_listed_host_passes(host: str | None) -> None:
    rules().check_host(host)


@pytest.mark.parametrize("machine", ["studio", "Studio.local", "studio.lan.example"])
def test_the_machine_s_own_local_name_is_allowed(machine: str) -> None:
    own = AccessRules.of(["localhost"], [], machine)
    for host in ("studio.local", "STUDIO.local:11435", "studio.local.", "localhost.:80"):
        own.check_host(host)
    for host in ("other.local", "studio", "studio.local.evil.example", ".local", "local"):
        with pytest.raises(Forbidden):
            own.check_host(host)


def test_a_machine_without_a_name_adds_none() -> None:
    for host in (".local", "local", ""):
        with pytest.raises(Forbidden):
            AccessRules.of(["localhost"], []).check_host(host)


@pytest.mark.parametrize("bad", ["evil\x1b[2J.example", "\udcff\udcfe", "x" * 1000])
def test_what_was_sent_is_told_short_and_printable(bad: str) -> None:
    with pytest.raises(Forbidden) as host:
        rules().check_host(bad)
    with pytest.raises(Forbidden) as origin:
        rules().check_origin(bad, "localhost")
    for message in (host.value.message, origin.value.message):
        assert message.isascii()
        assert message.isprintable()
        assert len(message) < 700


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "evil.example:11435",
        "localhost.evil.example",
        "evil.localhost",
        "127.0.0.1.evil.example:11435",
        "[::2]:1",
        "0.0.0.0",
    ],
)
def test_another_host_is_forbidden_and_the_setting_is_named(host: str) -> None:
    with pytest.raises(Forbidden, match=r"server\.allowed_hosts") as caught:
        rules().check_host(host)
    assert caught.value.status == 403


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        (None, "localhost:11435"),
        (None, None),
        ("http://localhost:11435", "localhost:11435"),
        ("https://my.server", "my.server"),
        ("https://listed.example", "localhost"),
    ],
)
def test_our_own_and_listed_origins_pass(origin: str | None, host: str | None) -> None:
    rules(origins=("https://listed.example",)).check_origin(origin, host)


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("https://evil.example", "localhost:11435"),
        ("http://localhost:3000", "localhost:11435"),
        ("http://localhost", "localhost:11435"),
        ("https://listed.example.evil", "localhost"),
        ("http://listed.example", "localhost"),
        ("null", "localhost"),
        ("", ""),
        ("file://", ""),
        ("chrome-extension://localhost", "localhost"),
        ("http://localhost", None),
    ],
)
def test_a_foreign_origin_is_forbidden_and_the_setting_is_named(
    origin: str, host: str | None
) -> None:
    with pytest.raises(Forbidden, match=r"server\.allowed_origins"):
        rules(origins=("https://listed.example",)).check_origin(origin, host)


def test_a_star_allows_every_origin() -> None:
    open_to_all = rules(origins=("*",))
    open_to_all.check_origin("https://evil.example", "localhost")
    assert open_to_all.allows_origin("https://evil.example")
    assert not rules().allows_origin("https://evil.example")


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer key-1"},
        {"Authorization": "bearer key-2"},
        {"Authorization": "BEARER   key-1 "},
        {"x-api-key": "key-2"},
        {"Authorization": "Bearer wrong", "x-api-key": "key-1"},
        {"Authorization": "Bearer schlüssel"},
        {"api-key": "key-1"},
        {"api-key": "key-2", "Authorization": "Bearer wrong"},
    ],
)
def test_any_configured_key_opens_and_its_name_is_known(headers: dict[str, str]) -> None:
    keys = {"key-1": "one", "key-2": "two", "schlüssel": "drei"}
    (presented,) = [key for key in keys if any(key in value for value in headers.values())]
    assert name_of_key(headers, keys) == keys[presented]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "key-1"},
        {"Authorization": "Basic key-1"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer key-"},
        {"Authorization": "Bearer key-11"},
        {"Authorization": "Bearer KEY-1"},
        {"x-api-key": ""},
        {"x-api-key": "key-1\udcff"},
        {"x-api-key": "\udcff"},
        {"api-key": "key-"},
        {"x-goog-api-key": "key-1"},
    ],
)
def test_anything_else_does_not_and_no_key_is_told(headers: dict[str, str]) -> None:
    with pytest.raises(InvalidAPIKey) as caught:
        name_of_key(headers, {"key-1": "one"})
    assert caught.value.status == 401
    assert "key-1" not in caught.value.message

"""Webhook targets: nothing but public addresses, tried against a real server on loopback that must see nobody."""

import asyncio
import socket
import threading
from typing import Any

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from hypothesis import given
from hypothesis import strategies as st

from infra import addresses
from infra.addresses import (
    BadTarget,
    PrivateAddress,
    PublicResolver,
    _public_socket,
    check_url,
    is_public,
    public_connector,
    was_private,
)
from tests.waiting import PATIENCE_SECONDS

PUBLIC = "93.184.215.14"


@pytest.mark.parametrize(
    "address",
    [PUBLIC, "1.1.1.1", "100.63.255.255", "100.128.0.0", "172.32.0.1", "2606:4700:4700::1111", "2a00:1450::1"],
)
def test_addresses_of_the_public_internet_pass(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "100.64.0.1",
        "100.127.255.255",
        "127.0.0.1",
        "127.255.255.254",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.8",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.1.1",
        "198.18.0.1",
        "198.51.100.7",
        "203.0.113.7",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
    ],
)
def test_special_ipv4_addresses_do_not_pass_in_any_wrapping(address: str) -> None:
    high, low = (int.from_bytes(part) for part in (socket.inet_aton(address)[:2], socket.inet_aton(address)[2:]))

    assert not is_public(address)
    assert not is_public(f"::ffff:{address}")
    assert not is_public(f"::{address}")
    assert not is_public(f"64:ff9b::{address}")
    assert not is_public(f"64:ff9b:1::{address}")
    assert not is_public(f"2002:{high:x}:{low:x}::1")
    assert not is_public(f"2001:0:{high:x}:{low:x}::1")


@pytest.mark.parametrize(
    "address",
    [
        "::",
        "::1",
        "100::1",
        "2001:db8::1",
        "2001:10::1",
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fd12:3456::1",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
        "",
        "localhost",
        "127.1",
    ],
)
def test_special_ipv6_addresses_and_non_addresses_do_not_pass(address: str) -> None:
    assert not is_public(address)


def test_a_public_ipv4_address_wrapped_in_ipv6_does_not_pass_either() -> None:
    assert not is_public(f"::ffff:{PUBLIC}")
    assert not is_public(f"64:ff9b::{PUBLIC}")


@given(st.ip_addresses())
def test_whatever_python_calls_private_does_not_pass(address: Any) -> None:
    if address.is_private or address.is_loopback or address.is_link_local or address.is_multicast:
        assert not is_public(str(address))


# Registration


def reason(url: str, *, allow_private: bool = False) -> str | None:
    try:
        asyncio.run(check_url(url, allow_private))
    except BadTarget as bad:
        return bad.reason
    return None


@pytest.mark.parametrize("url", [f"http://{PUBLIC}", f"https://{PUBLIC}:8443/hook?a=b@c#d", "HTTPS://1.1.1.1/a@b"])
def test_a_public_target_is_accepted(url: str) -> None:
    assert reason(url) is None


@pytest.mark.parametrize(
    "url, expected",
    [
        ("ftp://1.1.1.1/", "scheme"),
        ("file:///etc/passwd", "scheme"),
        ("javascript:alert(1)", "scheme"),
        ("1.1.1.1/hook", "scheme"),
        ("", "scheme"),
        ("//1.1.1.1/hook", "scheme"),
        ("http://", "malformed"),
        ("http:///hook", "malformed"),
        ("http:hook", "malformed"),
        ("http://1.1.1.1:99999/", "malformed"),
        ("http://1.1.1.1/a b", "malformed"),
        ("http://1.1.1.1\n.evil/", "malformed"),
        ("http://1.1.1.1\\@127.0.0.1/", "malformed"),
        ("http://1.1.1.1/\ud800", "malformed"),
        ("http://1.1.1.1/\0", "malformed"),
        ("http://[::1/", "malformed"),
        ("http://xn--/", "malformed"),
        ("http://xn--a.example/", "malformed"),
        ("http://user:word@1.1.1.1/", "credentials"),
        ("http://user@1.1.1.1/", "credentials"),
        ("http://@1.1.1.1/", "credentials"),
        ("http://:@1.1.1.1/", "credentials"),
        ("http://1.1.1.1/" + "x" * 486, "too_long"),
        ("http://a..b/", "unresolvable"),
        (f"http://{'a' * 70}.com/", "unresolvable"),
        ("http://no-such-host.invalid/", "unresolvable"),
        ("http://127.0.0.1/", "private"),
        ("http://localhost:8003/", "private"),
        ("http://[::1]:80/", "private"),
        ("http://[::ffff:127.0.0.1]/", "private"),
        ("http://[::ffff:1.1.1.1]/", "private"),
        ("http://[fe80::1%25eth0]/", "private"),
        ("http://169.254.169.254/latest/meta-data", "private"),
        ("http://0/", "private"),
        ("http://127.1/", "private"),
        ("http://2130706433/", "private"),
        ("http://0x7f000001/", "private"),
        ("http://0177.0.0.1/", "private"),
        ("http://１２７.0.0.1/", "private"),
        ("http://127。0.0.1/", "private"),
    ],
)
def test_a_bad_target_is_refused_with_its_reason(url: str, expected: str) -> None:
    assert reason(url) == expected


@pytest.mark.parametrize("length, expected", [(500, None), (501, "too_long")])
def test_a_url_has_at_most_500_characters(length: int, expected: str | None) -> None:
    assert reason(f"http://{PUBLIC}/".ljust(length, "x")) == expected


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/", "http://localhost/", "http://no-such-host.invalid/"])
def test_allowing_private_targets_lifts_the_address_rule(url: str) -> None:
    assert reason(url, allow_private=True) is None


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", "http://a:b@127.0.0.1/", "http://x/" + "y" * 500, "http://"])
def test_allowing_private_targets_lifts_no_other_rule(url: str) -> None:
    assert reason(url, allow_private=True) is not None


@given(st.text(max_size=60), st.booleans())
def test_no_text_is_an_accident(text: str, after_scheme: bool) -> None:
    assert reason(f"http://{text}" if after_scheme else text, allow_private=True) in {
        None,
        "malformed",
        "scheme",
        "credentials",
    }


# Delivery


class Server:
    """Listens on loopback and remembers who came."""

    def __init__(self) -> None:
        self.visitors = 0

    async def __aenter__(self) -> "Server":
        self._server = await asyncio.start_server(self._greet, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _greet(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.visitors += 1
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()


async def visit(connector: aiohttp.TCPConnector, url: str) -> BaseException | None:
    async with aiohttp.ClientSession(connector=connector) as session:
        try:
            async with session.post(url, data=b"{}"):
                return None
        except aiohttp.ClientError as error:
            return error


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"])
def test_a_private_target_is_refused_before_anything_is_connected(host: str) -> None:
    async def story() -> tuple[bool, int]:
        async with Server() as server:
            error = await visit(public_connector(), f"http://{host}:{server.port}/hook")
            return was_private(error), server.visitors

    assert asyncio.run(story()) == (True, 0)


@pytest.mark.parametrize("host", ["2130706433", "127.1", "0x7f.0.0.1"])
def test_a_strangely_spelled_private_target_gets_no_visit(host: str) -> None:
    async def story() -> tuple[bool, int]:
        async with Server() as server:
            error = await visit(public_connector(), f"http://{host}:{server.port}/hook")
            return error is not None, server.visitors

    assert asyncio.run(story()) == (True, 0)


def test_the_server_would_have_been_reached_without_the_rule() -> None:
    async def story() -> int:
        async with Server() as server:
            assert await visit(aiohttp.TCPConnector(), f"http://127.0.0.1:{server.port}/hook") is None
            return server.visitors

    assert asyncio.run(story()) == 1


def test_names_that_nobody_resolves_take_no_more_threads_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    known = threading.Event()

    def look_up(*_: object, **__: object) -> list[Any]:
        known.wait(PATIENCE_SECONDS)
        raise socket.gaierror

    async def story() -> set[str]:
        checks = (check_url(f"http://slow-{number}.example/") for number in range(400))
        outcomes = await asyncio.gather(*checks, return_exceptions=True)
        return {outcome.reason for outcome in outcomes if isinstance(outcome, BadTarget)}

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(addresses, "_LOOKUP_S", 0.1)
    try:
        assert {"unresolvable"} == asyncio.run(story())
        lookups = [thread for thread in threading.enumerate() if thread.name.startswith("lookup")]
        assert 1 <= len(lookups) <= 256
    finally:
        known.set()


@pytest.fixture
def rebinding(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A name server of an attacker: it gives the addresses of this list one after the other."""
    answers: list[str] = []

    def look_up(_host: str, port: int, *_: object, **__: object) -> list[tuple[Any, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answers.pop(0), port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return answers


def test_a_name_that_points_elsewhere_after_its_registration_is_refused(rebinding: list[str]) -> None:
    async def story() -> tuple[bool, int]:
        async with Server() as server:
            url = f"http://rebind.example:{server.port}/hook"
            rebinding.extend([PUBLIC, "127.0.0.1"])
            await check_url(url)
            return was_private(await visit(public_connector(), url)), server.visitors

    assert asyncio.run(story()) == (True, 0)


def test_each_connection_asks_anew_what_the_name_means(rebinding: list[str]) -> None:
    async def story() -> list[str]:
        resolver = PublicResolver()
        rebinding.extend([PUBLIC, "1.1.1.1", "10.0.0.1"])
        seen = [(await resolver.resolve("rebind.example", 80))[0]["host"] for _ in range(2)]
        with pytest.raises(PrivateAddress):
            await resolver.resolve("rebind.example", 80)
        await resolver.close()
        return seen

    assert asyncio.run(story()) == [PUBLIC, "1.1.1.1"]


class Fooled(AbstractResolver):
    """A resolver that lets everything pass."""

    async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> list[ResolveResult]:
        return [ResolveResult(hostname=host, host="127.0.0.1", port=port, family=family, proto=0, flags=0)]

    async def close(self) -> None:
        return None


def test_the_address_really_connected_to_is_checked_whatever_the_resolver_said() -> None:
    async def story() -> tuple[bool, int]:
        async with Server() as server:
            connector = aiohttp.TCPConnector(resolver=Fooled(), socket_factory=_public_socket, family=socket.AF_INET)
            error = await visit(connector, f"http://public.example:{server.port}/hook")
            return was_private(error), server.visitors

    assert asyncio.run(story()) == (True, 0)


def test_another_failure_is_not_taken_for_a_private_target() -> None:
    assert not was_private(OSError("refused"))
    assert not was_private(None)

"""Where webhooks may go: public addresses only, however the name is spelled and whatever DNS says a moment later.

The rule stands where nothing can get around it: `public_connector` gives aiohttp a resolver that passes only public
addresses, and a socket factory that looks at the very address about to be connected to. Literal addresses never meet
a resolver, and a name that pointed elsewhere when it was registered is judged by where it points now. `check_url` is
the polite half: it tells at registration what would be refused later.
"""

import asyncio
import errno
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Final, Literal

from aiohttp import TCPConnector
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

LONGEST_URL: Final = 500

Reason = Literal["too_long", "malformed", "scheme", "credentials", "unresolvable", "private"]

_LOOKUP_S: Final = 5.0
_LOOKUPS: Final = 256  # threads are made when needed; one that waits for a slow name server keeps no other waiting

# Looked for in the text itself: an empty user or password leaves no trace in the parsed URL.
_USER_INFO = re.compile(r"[^/]*//[^/?#]*@")

# What the registries of special-purpose addresses (RFC 6890 and after) call not globally reachable, and what carries
# an IPv4 address inside, so that nothing private hides in there. Spelled out, since Python's own `is_global` differs
# between patch releases.
_CLOSED = tuple(
    ip_network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT
        "127.0.0.0/8",
        "169.254.0.0/16",  # link-local, where clouds keep their metadata
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
        "2001::/23",  # Teredo, ORCHID and other protocols' own
        "2001:db8::/32",
        "2002::/16",  # 6to4
        "2620:4f:8000::/48",
        "3fff::/20",  # documentation
    )
)
# Of IPv6, only this much has been handed out as global unicast. The rest holds loopback, unspecified, mapped (::ffff),
# NAT64 (64:ff9b), unique local (fc00), link-local (fe80), site-local (fec0) and multicast (ff00) addresses.
_GLOBAL_UNICAST = IPv6Network("2000::/3")


class BadTarget(Exception):
    """A URL that no webhook may go to."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


class PrivateAddress(OSError):
    """A connection to an address that is not public was refused before it was made."""

    def __init__(self, address: str) -> None:
        super().__init__(errno.EACCES, f"not a public address: {address}")
        self.address = address


def is_public(address: str) -> bool:
    """Say whether an address is one of the public internet. What cannot be read as an address is not."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, IPv6Address) and parsed not in _GLOBAL_UNICAST:
        return False
    return not any(_contains(network, parsed) for network in _CLOSED)


async def check_url(url: str, allow_private: bool = False) -> None:
    """Check the URL of a webhook before it is registered (contract, section 12).

    Args:
        url: what the caller sent.
        allow_private: WEBHOOK_ALLOW_PRIVATE; lifts the rule about addresses, resolving included, and nothing else.

    Raises:
        BadTarget: with the reason; that of the first rule that is broken.
    """
    if len(url) > LONGEST_URL:
        raise BadTarget("too_long")
    parsed = _parsed(url)
    if allow_private:
        return
    try:
        if _is_literal(str(parsed.host)):
            _require_public(str(parsed.host))
        else:
            await _AT_REGISTRATION.resolve(str(parsed.raw_host), parsed.port or 0)
    except PrivateAddress:
        raise BadTarget("private") from None
    except OSError:
        raise BadTarget("unresolvable") from None


class PublicResolver(AbstractResolver):
    """A resolver for aiohttp that refuses a name as soon as one of its addresses is not public.

    It looks up in threads of its own: names are chosen by strangers, whose name servers may be slow on purpose.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="lookup")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of a host, all of them public.

        Raises:
            PrivateAddress: one of them is not.
            OSError: the name does not resolve, or not in time.
        """
        found = await self._look_up(host, port, family)
        addresses = [str(sockaddr[0]) for _, _, _, _, sockaddr in found]
        for address in addresses:
            _require_public(address)
        return [
            ResolveResult(hostname=host, host=address, port=port, family=kind, proto=proto, flags=socket.AI_NUMERICHOST)
            for address, (kind, _, proto, _, _) in zip(addresses, found, strict=True)
        ]

    async def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _look_up(self, host: str, port: int, family: int) -> list[Any]:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_LOOKUP_S):
                found = await loop.run_in_executor(
                    self._threads,
                    lambda: socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG),
                )
        except UnicodeError as error:  # a label that is empty or too long
            raise OSError(f"not a host name: {host!r}") from error
        if not found:
            raise OSError(f"no address: {host}")
        return found


# A resolver as at delivery, so that both judge alike. One for all who register: a lookup that was given up goes on in
# its thread, so that threads of each request's own would have no end. Deliveries do not wait for these.
_AT_REGISTRATION: Final = PublicResolver()


def public_connector(**options: Any) -> TCPConnector:
    """Return a connector for aiohttp sessions that connects to public addresses only.

    Args:
        options: passed on to `aiohttp.TCPConnector`.
    """
    # No cache: each attempt is judged by what the name means at that time.
    return TCPConnector(resolver=PublicResolver(), socket_factory=_public_socket, use_dns_cache=False, **options)


def was_private(error: BaseException | None) -> bool:
    """Say whether a request failed because its target was not public, however deep aiohttp has wrapped it."""
    while error is not None:
        if isinstance(error, PrivateAddress):
            return True
        error = error.__cause__
    return False


def _public_socket(address: tuple[Any, ...]) -> socket.socket:
    family, kind, proto, _, sockaddr = address
    _require_public(str(sockaddr[0]))
    return socket.socket(family, kind, proto)


def _require_public(address: str) -> None:
    if not is_public(address):
        raise PrivateAddress(address)


def _parsed(url: str) -> URL:
    """Read a URL as aiohttp will read it, so that no second opinion about its host can differ."""
    if not url.isprintable() or " " in url or "\\" in url:
        raise BadTarget("malformed")
    try:
        parsed = URL(url)
        host = parsed.host  # decoded here, and so the first to tell of a broken international name
    except ValueError:
        raise BadTarget("malformed") from None
    if parsed.scheme not in ("http", "https"):
        raise BadTarget("scheme")
    if _USER_INFO.match(url):
        raise BadTarget("credentials")
    if not host:
        raise BadTarget("malformed")
    return parsed


def _is_literal(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _contains(network: IPv4Network | IPv6Network, address: IPv4Address | IPv6Address) -> bool:
    return network.version == address.version and address in network

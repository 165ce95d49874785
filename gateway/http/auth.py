"""Who may talk to us: Host, Origin and API key. Pure.

Host and Origin stop a web page from reaching the server through the user's browser (DNS rebinding,
cross-site requests); keys stop other people on the network.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product

from supervisor.errors import Forbidden, InvalidAPIKey

_QUOTED = 100
"""Characters of a header that a message quotes."""


@dataclass(frozen=True, slots=True)
class AccessRules:
    """The rules, fixed at start. `hosts` are lower-case, without a dot at the end."""

    hosts: frozenset[str]
    origins: frozenset[str]

    @classmethod
    def of(cls, hosts: Iterable[str], origins: Iterable[str], machine: str = "") -> AccessRules:
        """With the name that the machine, whose host name is `machine`, has on the local network,
        where Bonjour gives it."""
        own = machine.partition(".")[0]
        named = [*hosts, f"{own}.local"] if own else hosts
        return cls(frozenset(_plain(host) for host in named), frozenset(origins))

    def check_host(self, host: str | None) -> None:
        """Raises Forbidden. HTTP/1.0 clients send no Host; no browser is one of them."""
        if host is None:
            return
        name = host_name(host)
        if _plain(name) not in self.hosts:
            raise Forbidden(
                f'The Host "{quoted(name)}" is not allowed. Add it to server.allowed_hosts.'
            )

    def check_origin(self, origin: str | None, host: str | None) -> None:
        """Raises Forbidden for a page of another site that isn't listed."""
        if origin is None or self.allows_origin(origin):
            return
        scheme, _, authority = origin.partition("://")
        if scheme in ("http", "https") and host is not None and authority == host:
            return
        raise Forbidden(
            f'The Origin "{quoted(origin)}" is not allowed. Add it to server.allowed_origins.'
        )

    def allows_origin(self, origin: str) -> bool:
        """Whether CORS headers are due."""
        return origin in self.origins or "*" in self.origins


def name_of_key(headers: Mapping[str, str], keys: Mapping[str, str]) -> str:
    """The name of the key that is presented, of `keys`: key → name. Raises InvalidAPIKey.

    OpenAI's clients send a bearer token, Anthropic's `x-api-key`, Azure's `api-key`.
    """
    scheme, _, token = headers.get("Authorization", "").partition(" ")
    offered = [headers.get("x-api-key", ""), headers.get("api-key", "")]
    if scheme.lower() == "bearer":
        offered.append(token.strip())
    # All are compared, each in constant time.
    names = [
        name
        for (key, name), each in product(keys.items(), offered)
        if hmac.compare_digest(_bytes(key), _bytes(each))
    ]
    if not names:
        raise InvalidAPIKey(
            "Incorrect API key provided. Send one of the server's keys as `Authorization: Bearer "
            "KEY`, `x-api-key: KEY` or `api-key: KEY`."
        )
    return names[0]


def quoted(text: str) -> str:
    """What a client sent as a message may show it: short, and printable whatever bytes it has."""
    shown = (each if each.isprintable() else repr(each)[1:-1] for each in text[:_QUOTED])
    return "".join(shown).encode("ascii", "backslashreplace").decode()


def host_name(authority: str) -> str:
    """The name in `name:port`, lower case, without an IPv6 address's brackets."""
    if authority.startswith("["):
        return authority[1:].partition("]")[0].lower()
    if authority.count(":") == 1:
        return authority.partition(":")[0].lower()
    return authority.lower()  # with more of them an IPv6 address whose brackets were left out


def _plain(host: str) -> str:
    """A name with a dot at the end is the same, spelled out."""
    return host.lower().removesuffix(".")


def _bytes(text: str) -> bytes:
    """Headers may hold any bytes; aiohttp carries those that are no UTF-8 as surrogates."""
    return text.encode("utf-8", "surrogateescape")

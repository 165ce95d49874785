"""Who may talk to us: Host, Origin and API key. Pure.

Host and Origin stop a web page from reaching the server through the user's browser (DNS rebinding,
cross-site requests); keys stop other people on the network.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

from supervisor.errors import Forbidden, InvalidAPIKey


@dataclass(frozen=True, slots=True)
class AccessRules:
    """The rules, fixed at start. No `keys` = anyone who passes the other checks may come in."""

    hosts: frozenset[str]
    origins: frozenset[str]
    keys: frozenset[str]

    def check_host(self, host: str | None) -> None:
        """Raises Forbidden. HTTP/1.0 clients send no Host; no browser is one of them."""
        if host is None:
            return
        name = host_name(host)
        if name not in self.hosts:
            raise Forbidden(
                f'The Host "{name[:100]}" is not allowed. Add it to server.allowed_hosts.'
            )

    def check_origin(self, origin: str | None, host: str | None) -> None:
        """Raises Forbidden for a page of another site that isn't listed."""
        if origin is None or self.allows_origin(origin):
            return
        scheme, _, authority = origin.partition("://")
        if scheme in ("http", "https") and host is not None and authority == host:
            return
        raise Forbidden(
            f'The Origin "{origin[:100]}" is not allowed. Add it to server.allowed_origins.'
        )

    def allows_origin(self, origin: str) -> bool:
        """Whether CORS headers are due."""
        return origin in self.origins or "*" in self.origins

    def check_key(self, headers: Mapping[str, str]) -> None:
        """Raises InvalidAPIKey unless a configured key is presented, or none is configured."""
        if not self.keys:
            return
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        offered = [headers.get("x-api-key", "")]
        if scheme.lower() == "bearer":
            offered.append(token.strip())
        pairs = product(self.keys, offered)
        if not any(hmac.compare_digest(_bytes(key), _bytes(each)) for key, each in pairs):
            raise InvalidAPIKey(
                "Incorrect API key provided. Send one of the server's keys as `Authorization: "
                "Bearer KEY` or `x-api-key: KEY`."
            )


def host_name(authority: str) -> str:
    """The name in `name:port`, lower case, without an IPv6 address's brackets."""
    if authority.startswith("["):
        return authority[1:].partition("]")[0].lower()
    return authority.rpartition(":")[0].lower() if ":" in authority else authority.lower()


def _bytes(text: str) -> bytes:
    """Headers may hold any bytes; aiohttp carries those that are no UTF-8 as surrogates."""
    return text.encode("utf-8", "surrogateescape")

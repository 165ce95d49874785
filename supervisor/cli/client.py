"""A running server as commands see it: found by its state directory or URL, asked over HTTP."""

from __future__ import annotations

import http.client
import json
import sys
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote, urlsplit

from supervisor.config.files import read_api_keys
from supervisor.config.rules import ConfigError
from supervisor.layout import one_line
from supervisor.state.address import Unreadable, find
from supervisor.wire.text import reason

_SECONDS = 15.0
"""For an answer that needs no model."""
_LOAD_SECONDS = 3600.0
_MOST_BYTES = 64 * 2**20
KEY_VARIABLE = "BULKHEAD_API_KEY"


class Unreachable(Exception):
    """No server, or none that talks to us; the message says what to do."""


class Refusal(Exception):
    """The server's own error, in its words."""


def fail(message: str, status: int = 1) -> NoReturn:
    """End the command with one line on stderr and this exit status."""
    print(f"bulkhead: {one_line(message)}", file=sys.stderr)
    sys.exit(status)


@dataclass(frozen=True, slots=True)
class Client:
    """Asks one server."""

    host: str
    port: int
    key: str = ""

    @classmethod
    def of_url(cls, url: str, environ: Mapping[str, str]) -> Client:
        """Raises Unreachable for what is no address of a server."""
        wrong = f"{url} is not the URL of a Bulkhead, such as http://127.0.0.1:11435"
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            port = parts.port or 80
        except ValueError:
            raise Unreachable(wrong) from None
        if parts.scheme != "http" or not parts.hostname:
            raise Unreachable(wrong)
        return cls(parts.hostname, port, environ.get(KEY_VARIABLE, ""))

    @classmethod
    def of_state(cls, root: Path, environ: Mapping[str, str]) -> Client:
        """The instance that runs with this state directory. Raises Unreachable."""
        try:
            address = find(root)
        except Unreadable as error:
            raise Unreachable(f"{error}; `--url` names the server itself") from None
        if address is None:
            raise Unreachable(
                f"no Bulkhead runs with the state directory {root}; `bulkhead serve` starts one"
            )
        key = environ.get(KEY_VARIABLE, "")
        if not key and address.api_keys_file:
            try:
                key = next(iter(sorted(read_api_keys(address.api_keys_file))), "")
            except ConfigError as error:
                raise Unreachable(f"{error}; set {KEY_VARIABLE}") from None
        client = cls.of_url(address.url, environ)
        return cls(client.host, client.port, key)

    @property
    def url(self) -> str:
        """The server's root."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def health(self, seconds: float = _SECONDS) -> dict[str, Any]:
        """The state of the server. Raises Unreachable or Refusal."""
        answer = self._ask("GET", "/", seconds)
        if "error" in answer:  # a 503 is either the state, which says so, or an error
            raise Refusal(_told(answer))
        return answer

    def default_model(self) -> str | None:
        """What a request gets that names no model; None where that is not set. Raises
        Unreachable."""
        try:
            return str(self._ask("GET", "/v1/models/default_model", _SECONDS).get("id"))
        except Refusal:
            return None

    def crashes(self, name: str = "") -> dict[str, Any]:
        """The crash report with that id, or the list of all. Raises Unreachable or Refusal."""
        path = f"/admin/crashes/{quote(name, safe='')}" if name else "/admin/crashes"
        return self._ask("GET", path, _SECONDS)

    def manage(self, model: str, action: str) -> dict[str, Any]:
        """Load, unload, pin or unpin. Blocks until a load is over. Raises Unreachable, Refusal."""
        seconds = _LOAD_SECONDS if action == "load" else _SECONDS
        path = f"/admin/models/{quote(model, safe='')}/{action}"
        return self._ask("POST", path, seconds)

    def events(self) -> Generator[dict[str, Any] | None, None, None]:
        """What happens from now on: None first, once the server has begun to tell. Raises
        Unreachable or Refusal."""
        with self._send("GET", "/admin/events", _SECONDS) as response:
            for line in response:
                if line.startswith(b": watching"):
                    yield None
                elif line.startswith(b"data: "):
                    yield json.loads(line[6:])

    def _ask(self, method: str, path: str, seconds: float) -> dict[str, Any]:
        with self._send(method, path, seconds) as response:
            answer = json.loads(_whole(response))
            if not isinstance(answer, dict):
                raise ValueError("no object")
            return answer

    @contextmanager
    def _send(self, method: str, path: str, seconds: float) -> Iterator[http.client.HTTPResponse]:
        """The answer, to be read inside. No more than `seconds` pass between two parts of it."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=seconds)
        headers = {"x-stainless-read-timeout": str(seconds)}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        try:
            connection.request(method, path, headers=headers)
            with connection.getresponse() as response:
                if response.status != 200 and not (path == "/" and response.status == 503):
                    told = _message(_whole(response))
                    if response.status == 401:
                        told = f"{told} This command takes it from ${KEY_VARIABLE}."
                    raise Refusal(told)
                yield response
        except TimeoutError:
            raise Unreachable(f"{self._where} did not answer within {seconds:g} s") from None
        except ValueError:
            raise Unreachable(f"{self._where} gave an answer that is not Bulkhead's") from None
        except ConnectionRefusedError as error:
            raise Unreachable(
                f"{self._where} does not answer: {reason(error)}; `bulkhead serve` starts a server"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"{self._where} does not answer: {reason(error)}") from None
        finally:
            connection.close()

    @property
    def _where(self) -> str:
        return f"{self.host}:{self.port}"


def _whole(response: http.client.HTTPResponse) -> bytes:
    """What it holds. Raises ValueError for more than a Bulkhead ever says."""
    data = response.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise ValueError("too long")
    return data


def _message(body: bytes) -> str:
    try:
        return _told(json.loads(body))
    except ValueError:
        return _told(None)


def _told(answer: Any) -> str:
    """What an error says."""
    try:
        return str(answer["error"]["message"])
    except (KeyError, TypeError):
        return "the server gave an answer that is not Bulkhead's"

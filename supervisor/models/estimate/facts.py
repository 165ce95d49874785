"""What config.json says, read with suspicion: the file comes from whoever published the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from supervisor.models.jsonfiles import Malformed, read_object
from supervisor.wire.text import reason

MAX_NUMBER = 10**9
"""No dimension of any model is near it; a larger figure must not become an endless sum."""
MAX_LAYERS = 10_000


class EstimateError(Exception):
    """A model's memory can't be told from its files; the message says why."""


class Facts:
    """A JSON object whose fields are looked up under several names.

    `null` counts as absent, as in mlx-lm, where such a field takes its default.
    """

    def __init__(self, table: Mapping[str, object], where: str = "config.json") -> None:
        self._table = table
        self._where = where

    def integer(self, *names: str, default: int | None = None) -> int:
        """The first of `names` that is there, 0 to 10^9. Raises EstimateError when it is no such
        number, or when none is there and no `default` given."""
        for name in names:
            value = self._table.get(name)
            if value is None:
                continue
            if (
                isinstance(value, bool)
                or not isinstance(value, int)
                or not 0 <= value <= MAX_NUMBER
            ):
                raise EstimateError(f"{self._where}: {name} is not a usable number")
            return value
        if default is None:
            raise EstimateError(f"{self._where}: {names[0]} is missing")
        return default

    def positive(self, *names: str, default: int | None = None) -> int:
        """`integer`, above 0."""
        value = self.integer(*names, default=default)
        if value == 0:
            raise EstimateError(f"{self._where}: {names[0]} is 0")
        return value

    def largest(self, *names: str, default: int) -> int:
        """`integer`, where some models have a list with a number for each layer."""
        for name in names:
            if isinstance(self._table.get(name), list):
                return max(self.integers(name) or (), default=default)
        return self.integer(*names, default=default)

    def text(self, name: str) -> str:
        value = self._table.get(name)
        return value if isinstance(value, str) else ""

    def flag(self, name: str, default: bool = False) -> bool:
        value = self._table.get(name)
        return value if isinstance(value, bool) else default

    def items(self, name: str) -> Sequence[object] | None:
        """A list, or the characters of a string; None when there is neither."""
        value = self._table.get(name)
        if isinstance(value, list | str):
            if len(value) > MAX_LAYERS:
                raise EstimateError(f"{self._where}: {name} has {len(value)} entries")
            return value
        return None

    def integers(self, name: str) -> Sequence[int] | None:
        items = self.items(name)
        if items is None:
            return None
        return [Facts({name: item}, self._where).integer(name) for item in items]

    def table(self, name: str) -> Facts | None:
        value = self._table.get(name)
        return Facts(value, f"{self._where}: {name}") if isinstance(value, dict) else None

    def layers(self) -> int:
        count = self.integer("num_hidden_layers", "n_layers", "n_layer", "num_layers")
        if count > MAX_LAYERS:
            raise EstimateError(f"{self._where}: {count} layers")
        return count

    def merged(self, inner: str) -> Facts:
        """The object below `inner` (`text_config`), with this one's fields where it is silent."""
        below = self._table.get(inner)
        if not isinstance(below, dict):
            return self
        return Facts({**self._table, **{k: v for k, v in below.items() if v is not None}})


def read_config(folder: Path) -> Facts:
    """config.json of `folder`. Blocks on one file read. Raises EstimateError."""
    path = folder / "config.json"
    try:
        table = read_object(path)
    except OSError as error:
        raise EstimateError(f"{path} cannot be read: {reason(error)}") from None
    except Malformed as error:
        raise EstimateError(f"{path} {error}") from None
    return Facts(table)

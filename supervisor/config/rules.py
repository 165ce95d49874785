"""The types of settings, and how a TOML table becomes a struct of them.

A field's type hint is its whole rule: msgspec checks type and range, `Meta.description` is what the
error says was expected, and `Meta.extra["check"]` holds what msgspec cannot express.
"""

import difflib
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, time
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_origin

import msgspec
from msgspec import Meta

S = TypeVar("S", bound=msgspec.Struct)

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SIZE = re.compile(r"([0-9]{1,12})(?:\.([0-9]{1,3}))? ?([KMGT])(I?)B", re.ASCII | re.IGNORECASE)
_PERCENT = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,3})?)%", re.ASCII)
_MAX_BYTES = 2**63 - 1
_FINITE = sys.float_info.max


class ConfigError(Exception):
    """A setting that cannot be used: the message begins with the key's dotted path. Or a file that
    cannot be read or parsed: it begins with the file's name."""


class WrittenKey(NamedTuple):
    """A key that is set in the file, by a flag or by a variable."""

    rule: str
    """The path with a model's name as `*`: `models.*.pin`."""
    label: str
    """How a message names it: `models.coder.pin`, with the flag or variable it came from."""
    value: object
    """After conversion."""


def parse_size(text: str) -> int:
    """Bytes of `"64MB"`, `"1.5 GB"` or `"2GiB"`.

    KB, MB, GB and TB are powers of 1000; KiB, MiB, GiB and TiB powers of 1024. Case does not
    matter, a unit is required, and a fraction of up to three digits is cut to whole bytes.
    Raises ValueError for anything else and for more than 2^63 - 1 bytes.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError('expected a size such as "64MB" or "2GiB"')
    whole, fraction, prefix, binary = match.groups(default="")
    unit = (1024 if binary else 1000) ** ("KMGT".index(prefix.upper()) + 1)
    size: int = int(whole) * unit + int(fraction or 0) * unit // 10 ** len(fraction)
    if size > _MAX_BYTES:
        raise ValueError("a size of more than 2^63 - 1 bytes")
    return size


def parse_percent(text: str) -> float:
    """The share, above 0 and up to 1, that `"75%"` stands for. Raises ValueError."""
    match = _PERCENT.fullmatch(text)
    share = float(match[1]) / 100 if match else 0.0
    if not 0 < share <= 1:
        raise ValueError('expected a percentage such as "75%"')
    return share


def is_name(text: str) -> bool:
    """Whether `text` can name a model: printable, not empty, no space around it."""
    return text != "" and text.isprintable() and text == text.strip()


def parses(
    *parsers: Callable[[str], float], auto: bool = False, zero: bool = False
) -> dict[str, Any]:
    """The `Meta.extra` of a string that one of `parsers` turns into a number above 0.

    With `auto` it may be "auto", with `zero` the number may be 0.
    """

    def check(text: str) -> bool:
        if text == "auto":
            return auto
        for parser in parsers:
            try:
                return parser(text) > 0 or zero
            except ValueError:
                continue
        return False

    return {"check": check}


def quote(text: str) -> str:
    """`text` as a TOML string, safe to print whatever it holds."""
    return json.dumps(text, ensure_ascii=not text.isprintable())


def dotted(path: str, key: str) -> str:
    """The path of `key` in the table at `path`, quoted where TOML would want it."""
    key = key if _BARE_KEY.fullmatch(key) else quote(key)
    return f"{path}.{key}" if path else key


def nearest(word: str, known: Iterable[str]) -> str:
    """` (did you mean "port"?)` when something in `known` is close to `word`, else nothing."""
    match = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {quote(match[0])}?)" if match else ""


_AUTO_SIZE = '"auto" or a size such as "64MB" or "2GiB"'

Text = Annotated[str, Meta(min_length=1, description="a string that is not empty")]
Source = Annotated[
    str,
    Meta(
        min_length=1,
        description='a string: a model folder, a Hugging Face repo id or "demo"',
    ),
]
Name = Annotated[
    str,
    Meta(
        description="a name without control characters or spaces around it",
        extra={"check": is_name},
    ),
]
Count = Annotated[int, Meta(ge=0, le=1_000_000_000, description="an integer from 0 to 1000000000")]
Port = Annotated[int, Meta(ge=0, le=65535, description="an integer from 0 to 65535")]
Share = Annotated[float, Meta(ge=0, le=1, description="a number between 0 and 1")]
Seconds = Annotated[float, Meta(ge=0, le=_FINITE, description="a number of seconds, 0 or more")]
Patience = Annotated[float, Meta(gt=0, le=_FINITE, description="a number of seconds above 0")]
AutoSeconds = Annotated[
    Annotated[float, Meta(ge=0, le=_FINITE)] | Literal["auto"],
    Meta(description='"auto" or a number of seconds, 0 or more'),
]
Size = Annotated[str, Meta(description='a size such as "64MB" or "2GiB"', extra=parses(parse_size))]
AutoSize = Annotated[str, Meta(description=_AUTO_SIZE, extra=parses(parse_size, auto=True))]
CacheSize = Annotated[  # a prompt cache may be off, hence 0
    str,
    Meta(description=_AUTO_SIZE, extra=parses(parse_size, auto=True, zero=True)),
]
Budget = Annotated[
    str,
    Meta(
        description='"auto", a size such as "96GB" or a percentage such as "75%"',
        extra=parses(parse_size, parse_percent, auto=True),
    ),
]


class TableReader:
    """Turns tables into structs and notes every key in them, in the order of the file.

    `origins` names the flag or environment variable behind a path that is not from the file.
    Every method raises ConfigError at the first problem.
    """

    def __init__(self, origins: Mapping[str, str]) -> None:
        self.written: list[WrittenKey] = []
        self._origins = origins

    def label(self, path: str) -> str:
        """`path`, with the flag or variable that set it."""
        origin = self._origins.get(path)
        return f"{path} ({origin})" if origin else path

    def table(self, cls: type[S], raw: object, path: str, rule: str) -> S:
        """The struct that the table at `path` describes. `rule`: `path` with `*` for a model."""
        fields = {field.name: field for field in msgspec.structs.fields(cls)}
        values: dict[str, Any] = {}
        for key, item in self.expect_table(raw, path).items():
            where = dotted(path, key)
            if key not in fields:
                hint = nearest(key, fields)
                if rule == "models.*" and isinstance(item, dict):
                    # [models.qwen2.5] is TOML for a table "5" inside a model "qwen2".
                    hint = " (a model name with a dot in it needs quotes)"
                raise ConfigError(f"{where}: unknown key{hint}")
            values[key] = self._value(item, fields[key].type, where)
            self.written.append(WrittenKey(f"{rule}.{key}", self.label(where), values[key]))
        for name, field in fields.items():
            if field.required and name not in values:
                raise ConfigError(
                    f"{dotted(path, name)}: missing; expected {_describe(field.type)}"
                )
        return cls(**values)

    def expect_table(self, raw: object, path: str) -> dict[str, object]:
        """`raw`, which must be a table."""
        if not isinstance(raw, dict):
            raise ConfigError(f"{self.label(path)}: expected a table, got {_show(raw)}")
        return raw

    def _value(self, raw: object, hint: Any, path: str) -> object:
        if get_origin(hint) is tuple:
            if not isinstance(raw, list):
                raise ConfigError(f"{self.label(path)}: expected an array, got {_show(raw)}")
            return tuple(
                self._value(item, get_args(hint)[0], f"{path}[{i}]") for i, item in enumerate(raw)
            )
        if get_origin(hint) is dict:
            return self._environment(self.expect_table(raw, path), path)
        try:
            value: object = msgspec.convert(raw, hint)
            if _passes(value, hint):
                return value
        except msgspec.ValidationError:
            pass
        raise ConfigError(f"{self.label(path)}: expected {_describe(hint)}, got {_show(raw)}")

    def _environment(self, table: dict[str, object], path: str) -> dict[str, str]:
        # A value may be a secret: messages name its type alone.
        values: dict[str, str] = {}
        for key, value in table.items():
            where = dotted(path, key)
            if not key or "=" in key or "\0" in key:
                raise ConfigError(f"{where}: not a name that an environment variable can have")
            if not isinstance(value, str):
                raise ConfigError(f"{where}: expected a string, got {_type_name(value)}")
            if "\0" in value:
                raise ConfigError(f"{where}: expected a string without NUL characters")
            values[key] = value
        return values


def _passes(value: object, hint: Any) -> bool:
    return all(meta.extra["check"](value) for meta in _metas(hint) if meta.extra)


def _metas(hint: Any) -> list[Meta]:
    return [each for each in get_args(hint)[1:] if isinstance(each, Meta)]


def _describe(hint: Any) -> str:
    """What a field wants, in TOML's words."""
    for meta in _metas(hint):
        if meta.description:
            return meta.description
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(quote(choice) for choice in get_args(hint))
    return "a boolean" if hint is bool else "a string"


def _show(raw: object) -> str:
    if isinstance(raw, str):
        return quote(raw if len(raw) <= 60 else raw[:60] + "…")
    if isinstance(raw, bool):
        return "true" if raw else "false"
    # The digits of a huge integer may be too many to print (sys.set_int_max_str_digits).
    if isinstance(raw, float) or (isinstance(raw, int) and raw.bit_length() < 64):
        return repr(raw)
    return _type_name(raw)


def _type_name(raw: object) -> str:
    names = {
        str: "a string",
        bool: "a boolean",
        int: "an integer",
        float: "a number",
        list: "an array",
        dict: "a table",
        datetime: "a date-time",
        date: "a date",
        time: "a time",
    }
    return names.get(type(raw), "something else")

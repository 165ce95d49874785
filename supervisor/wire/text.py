"""Text that may have come from names of files, which on Linux are bytes in any encoding.

Python keeps such bytes as lone surrogates, which neither JSON nor MessagePack can carry.
"""

from __future__ import annotations

from typing import Any

import msgspec


def is_utf8(text: str) -> bool:
    """Whether it holds nothing that UTF-8 cannot carry."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def as_utf8(text: str) -> str:
    r"""`text`, with each byte that is not UTF-8 as `\xe9`; the same text where there is none."""
    if is_utf8(text):
        return text
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        return text.encode("utf-8", "backslashreplace").decode()


def all_as_utf8(value: Any) -> Any:
    """A copy of `value` in which every text is UTF-8: of builtins and structs, however nested."""
    match value:
        case str():
            return as_utf8(value)
        case dict():
            return {all_as_utf8(key): all_as_utf8(each) for key, each in value.items()}
        case list():
            return [all_as_utf8(each) for each in value]
        case tuple():
            return tuple(all_as_utf8(each) for each in value)
        case msgspec.Struct():
            fields = value.__struct_fields__
            changed = {name: all_as_utf8(getattr(value, name)) for name in fields}
            return msgspec.structs.replace(value, **changed)
    return value


def to_json(value: Any) -> bytes:
    """JSON of a report, whatever its texts are: a report is never refused for what it has to
    say."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return msgspec.json.encode(all_as_utf8(value))

"""Text that may have come from names of files, which on Linux are bytes in any encoding.

Python keeps such bytes as lone surrogates, which neither JSON nor MessagePack can carry.
"""

from __future__ import annotations

from typing import Any

import msgspec


def printable(text: str) -> str:
    r"""`text`, with each byte that is not UTF-8 as `\xe9`; the same text where there is none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        pass
    else:
        return text
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        return text.encode("utf-8", "backslashreplace").decode()


def all_printable(value: Any) -> Any:
    """A copy of `value` in which every text is printable: of builtins and structs, however
    nested."""
    match value:
        case str():
            return printable(value)
        case dict():
            return {all_printable(key): all_printable(each) for key, each in value.items()}
        case list():
            return [all_printable(each) for each in value]
        case tuple():
            return tuple(all_printable(each) for each in value)
        case msgspec.Struct():
            fields = value.__struct_fields__
            changed = {name: all_printable(getattr(value, name)) for name in fields}
            return msgspec.structs.replace(value, **changed)
    return value


def to_json(value: Any) -> bytes:
    """JSON of a report, whatever its texts are: a report is never refused for what it has to
    say."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return msgspec.json.encode(all_printable(value))

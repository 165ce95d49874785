"""Text that may have come from names of files, which on Linux are bytes in any encoding, and the
system's own words.

Python keeps such bytes as lone surrogates, which neither JSON nor MessagePack can carry.
"""

from __future__ import annotations

import errno
from typing import Any

import msgspec


def reason(error: Exception) -> str:
    """Why the system refused something, in its words as they stand inside a sentence."""
    if isinstance(error, OSError) and error.errno == errno.EPERM:
        return "permission denied"  # "operation not permitted", for a file that nobody may read
    told = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return told[:1].lower() + told[1:] if told[1:2].islower() else told


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

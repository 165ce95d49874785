"""The path that a client means. Pure.

Users put a base URL together from pieces, and clients put theirs behind it: `//chat/completions`,
`/v1/v1/models`, `/v1/chat/completions/` and `/v1/health` are as common as what the documentation
says.
"""

from __future__ import annotations

import re

_PREFIX = re.compile(r"/+(?:v1(?:/+|$))*")
_WITH_AN_ID = ("models/", "admin/models/")
_OUR_OWN = re.compile(r"(?:health|openapi\.json|(?:admin|api)/.*)", re.DOTALL)
"""Routes that OpenAI's API does not have, and that have no version."""


def meant_path(path: str) -> str:
    """`path`, which is not decoded, with slashes and `/v1` that are there once too often left out.

    Inside of a model's id, which may hold slashes, nothing is changed.
    """
    prefix = _PREFIX.match(path)
    if prefix is None:  # `*`, or a whole URL for a proxy
        return path
    rest = path[prefix.end() :].rstrip("/")
    if not rest.startswith(_WITH_AN_ID):
        rest = re.sub("/+", "/", rest)
    if "v1" in prefix[0] and not _OUR_OWN.fullmatch(rest):
        return f"/v1/{rest}" if rest else "/v1"
    return f"/{rest}"

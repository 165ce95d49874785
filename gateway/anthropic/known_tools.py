"""Tools of Anthropic's whose form its models know and that clients run. Data.

A request names them by their type alone; other models are shown the form that Anthropic's
documentation gives.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_TYPE = re.compile(r"(?P<family>bash|text_editor|memory)_(?P<date>\d{8})")
_RENAMED = "20250429"
"""The text editor's date since which it has its new name, and undoes nothing."""


def known_tool(kind: str, tool: Mapping[str, Any]) -> dict[str, Any] | None:
    """The function that chat templates show for a tool of that type; None = it is not known."""
    found = _TYPE.fullmatch(kind)
    if found is None:
        return None
    match found["family"]:
        case "bash":
            return _BASH
        case "memory":
            return _MEMORY
        case _ if found["date"] < _RENAMED:
            return _editor("str_replace_editor", ("undo_edit",), "new_str")
        case _:
            return _editor("str_replace_based_edit_tool", (), "insert_text")


def _text(description: str) -> dict[str, Any]:
    return {"type": "string", "description": description}


def _function(name: str, description: str, required: list[str], **members: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": members, "required": required}
    return {"name": name, "description": description, "parameters": parameters}


_LINE = {
    "type": "integer",
    "description": "For `insert`: the line behind which the text goes; 0 = at the beginning.",
}
_RANGE = {
    "type": "array",
    "items": {"type": "integer"},
    "description": "For `view`: the first and the last line to be shown, counted from 1; -1 as the "
    "last one is the end.",
}
_OLD = _text("For `str_replace`: the text to be replaced. It must stand in the file exactly once.")
_NEW = "For `str_replace`: the text to put in its place."
_FILE = _text("For `create`: the whole text of the new file.")

_BASH = _function(
    "bash",
    "Run a command in a bash session, which keeps its state between calls.",
    [],
    command=_text("The command to run. Required unless the session is restarted."),
    restart={"type": "boolean", "description": "true = restart the session instead."},
)
_MEMORY = _function(
    "memory",
    "Read and change files in the folder /memories, which lasts from one conversation to the next.",
    ["command"],
    command={
        "type": "string",
        "enum": ["view", "create", "str_replace", "insert", "delete", "rename"],
        "description": "What to do.",
    },
    path=_text("The file, or for `view` and `delete` the folder. Required but for `rename`."),
    view_range=_RANGE,
    file_text=_FILE,
    old_str=_OLD,
    new_str=_text(_NEW),
    insert_line=_LINE,
    insert_text=_text("For `insert`: the text."),
    old_path=_text("For `rename`: the present path."),
    new_path=_text("For `rename`: the path it gets."),
)


def _editor(name: str, more: tuple[str, ...], inserted: str) -> dict[str, Any]:
    """`inserted` is the member that holds what `insert` inserts."""
    members = {
        "command": {
            "type": "string",
            "enum": ["view", "create", "str_replace", "insert", *more],
            "description": "What to do.",
        },
        "path": _text("The file; for `view` it may be a folder."),
        "view_range": _RANGE,
        "file_text": _FILE,
        "old_str": _OLD,
        "new_str": _text(_NEW),
        "insert_line": _LINE,
    }
    if inserted == "new_str":
        members["new_str"] = _text(f"{_NEW} For `insert`: the text.")
    else:
        members[inserted] = _text("For `insert`: the text.")
    return _function(name, "View, create and edit files.", ["command", "path"], **members)

"""Message lists in shapes that stricter chat templates take. Pure.

Clients send what OpenAI's API takes: several system messages, system messages between others, two
messages of one role in a row, an answer first. Many templates raise over each of these. Nothing
that was said is lost on the way, and its order stays; only roles and borders of messages change.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Message = dict[str, Any]
Messages = list[Message]
_BETWEEN = "\n\n"
_CALL_ID_LENGTH = 9
"""What Mistral's templates ask of the ids of calls."""


def gentler(messages: Sequence[Message], *, knows_calls: bool) -> Iterator[tuple[str, Messages]]:
    """Shapes that a template which has refused `messages` may take, with what was done for the
    log. Each goes further than the one before it; the last is a conversation of user and assistant
    alone, in turns. `knows_calls`: the template would show calls that stand in messages."""
    done: list[str] = []
    current = list(messages)
    for what, step in _STEPS if knows_calls else (_TELL_CALLS, *_STEPS):
        changed = step(current)
        if changed != current:
            current = changed
            done += [what] if what not in done else []
            yield ", ".join(done), current


def _merge(messages: Messages) -> Messages:
    """One system message at the front; later ones are the user's words, in their place, but not
    between calls and their results. Neighbours of one role, except results, are one message."""
    placed: Messages = []
    later: Messages = []
    """System messages that a result may follow."""
    for message in messages:
        role = message.get("role")
        if role == "system" and placed and placed[-1].get("role") != "system":
            later.append({**message, "role": "user"})
            continue
        if role != "tool":
            placed += later
            later = []
        placed.append(message)
    merged = [_joined(run) for run in _runs(placed + later)]
    if len(messages) > 1 and [each.get("role") for each in merged] == ["system"]:
        merged[0] = {**merged[0], "role": "user"}  # many templates tell no system message alone
    return merged


def _runs(messages: Messages) -> list[Messages]:
    """Neighbours that become one message. A client may send thousands: each is joined once."""
    runs: list[Messages] = []
    for message in messages:
        if runs and _are_one(runs[-1][0], message):
            runs[-1].append(message)
        else:
            runs.append([message])
    return runs


def _are_one(first: Message, second: Message) -> bool:
    """Whether two neighbours become one message. Text is not joined to calls: some templates show
    no text beside them."""
    if first.get("role") != second.get("role") or first.get("role") == "tool":
        return False
    return bool(first.get("tool_calls")) == bool(second.get("tool_calls"))


def _joined(run: Messages) -> Message:
    """Messages of one role as one."""
    first, *others = run
    if not others:
        return first
    joined: Message = {}
    for message in reversed(run):
        joined |= message
    joined["content"] = _joined_content(*(message.get("content") for message in run))
    thoughts = [m["reasoning_content"] for m in run if m.get("reasoning_content")]
    if thoughts:
        joined["reasoning_content"] = _BETWEEN.join(thoughts)
    calls = [call for m in run for call in m.get("tool_calls") or ()]
    if calls:
        joined["tool_calls"] = calls
    if any(message.get("name") != first.get("name") for message in others):
        joined.pop("name", None)
    return joined


def _joined_content(*contents: Any) -> Any:
    """Texts with an empty line between them; with lists of parts, such as of images, one list."""
    lists = [place for place, each in enumerate(contents) if isinstance(each, list)]
    texts = contents[: lists[0]] if lists else contents
    text = _BETWEEN.join(each for each in texts if each)
    if not lists:
        return text
    return [*_parts(text), *(part for each in contents[lists[0] :] for part in _parts(each))]


def _parts(content: Any) -> list[Any]:
    if isinstance(content, list):
        return content
    return [{"type": "text", "text": content}] if content else []


def _shorten_ids(messages: Messages) -> Messages:
    """Ids of calls as Mistral's own: nine letters and digits, the same in a call and its result."""
    changed: Messages = []
    for place, message in enumerate(messages):
        message = dict(message)
        if message.get("tool_calls"):
            message["tool_calls"] = [
                {**call, "id": _short(call.get("id") or f"{place}:{number}")}
                if isinstance(call, dict)
                else call
                for number, call in enumerate(message["tool_calls"])
            ]
        if isinstance(message.get("tool_call_id"), str):
            message["tool_call_id"] = _short(message["tool_call_id"])
        changed.append(message)
    return changed


def _short(name: str) -> str:
    if len(name) == _CALL_ID_LENGTH and name.isascii() and name.isalnum():
        return name
    digest = hashlib.blake2b(name.encode("utf-8", "replace"), digest_size=8)
    return digest.hexdigest()[:_CALL_ID_LENGTH]


def _one_call_each(messages: Messages) -> Messages:
    """For templates that take one call at a time: each in a message of its own, before its result,
    which is the one with its id or else the next."""
    changed: Messages = []
    place = 0
    while place < len(messages):
        message = messages[place]
        place += 1
        calls = message.get("tool_calls") or []
        if len(calls) < 2:
            changed.append(message)
            continue
        results = _Results()
        while place < len(messages) and messages[place].get("role") == "tool":
            results.add(messages[place])
            place += 1
        for number, call in enumerate(calls):
            said = {"content": ""} if number else {}
            changed.append({**_without_thoughts(message, number), **said, "tool_calls": [call]})
            changed += results.take(call)
        changed += results.rest()
    return changed


def _without_thoughts(message: Message, number: int) -> Message:
    """They stand before the first call alone."""
    if not number:
        return message
    return {name: value for name, value in message.items() if name != "reasoning_content"}


class _Results:
    """The results that follow one message's calls, in order."""

    def __init__(self) -> None:
        self._left: dict[int, Message] = {}
        """By their number."""
        self._by_id: dict[object, deque[int]] = {}

    def add(self, result: Message) -> None:
        number = len(self._left)
        self._left[number] = result
        self._by_id.setdefault(result.get("tool_call_id") or None, deque()).append(number)

    def take(self, call: Any) -> Messages:
        """The result of that call, or else the next that has no id; none if there is none."""
        wanted = call.get("id") if isinstance(call, dict) else None
        known = self._by_id.get(wanted) or self._by_id.get(None)
        return [self._left.pop(known.popleft())] if known else []

    def rest(self) -> Messages:
        """Those that no call took."""
        return list(self._left.values())


def _alternate(messages: Messages) -> Messages:
    """The user begins, and an answer stands between a result and what the user says next: empty
    messages where there are none."""
    changed: Messages = []
    before = None
    for message in messages:
        role = message.get("role")
        if role == "assistant" and before in (None, "system"):
            changed.append({"role": "user", "content": ""})
        if role == "user" and before == "tool":
            changed.append({"role": "assistant", "content": ""})
        changed.append(message)
        before = role
    return changed


def _fold_system(messages: Messages) -> Messages:
    """For templates that know no system message: it begins the user's first."""
    if not messages or messages[0].get("role") != "system":
        return messages
    system, *others = messages
    return _merge([{**system, "role": "user"}, *others])


def _tell_calls(messages: Messages) -> Messages:
    """For templates that know neither calls nor their results: both as text."""
    told: Messages = []
    for message in messages:
        message = dict(message)
        if calls := message.pop("tool_calls", None):
            text = "\n".join(json.dumps(_plain(call), ensure_ascii=False) for call in calls)
            message["content"] = _joined_content(message.get("content"), text)
        if message.get("role") == "tool":
            message["role"] = "user"
            message.pop("tool_call_id", None)
            message.pop("name", None)
        told.append(message)
    if told == messages:
        return messages
    return _merge([m for m in told if m.get("content") or m.get("reasoning_content")])


def _plain(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return call
    return {"name": function.get("name"), "arguments": function.get("arguments")}


_Step = tuple[str, Callable[[Messages], Messages]]
_TELL_CALLS: _Step = ("calls and their results written as text", _tell_calls)
_ALTERNATE: _Step = ("empty messages put between", _alternate)
_STEPS: tuple[_Step, ...] = (
    ("messages merged", _merge),
    ("ids of calls shortened", _shorten_ids),
    ("one call at a time", _one_call_each),
    _ALTERNATE,
    ("the system message joined to the user's", _fold_system),
    _TELL_CALLS,
    _ALTERNATE,
)

"""gateway.anthropic.messages: every shape of a conversation, as chat templates take it."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from anthropic.types import ContentBlockParam
from anthropic.types.beta import BetaContentBlockParam

from gateway.anthropic import blocks
from gateway.anthropic.messages import stable
from gateway.openai.thoughts import seal
from supervisor.errors import InvalidType, InvalidValue, UnsupportedValue
from tests.helpers.anthropic_bodies import SECRET, USER, chat, parsed, refusal, said, sdk_types

CALL = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": [1, None]}}
CALLED = {
    "id": "toolu_1",
    "type": "function",
    "function": {"name": "look", "arguments": '{"at":[1,null]}'},
}
HUGE = {**CALL, "input": {"a": 2**70}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "seen"}
SEEN = {"role": "tool", "tool_call_id": "toolu_1", "content": "seen", "name": "look"}


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


def assistant(*content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": list(content)}


def text(said: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": said, **more}


@pytest.mark.parametrize(
    ("system", "told"),
    [
        (None, []),
        ("", []),
        ([], []),
        ("Be brief.", ["Be brief."]),
        ([text("Be brief.", cache_control={"type": "ephemeral"})], ["Be brief."]),
        ([text("Be brief."), text(""), text("Be kind.")], ["Be brief.\n\nBe kind."]),
    ],
)
def test_the_system_prompt_comes_first(system: Any, told: list[str]) -> None:
    heads = [{"role": "system", "content": each} for each in told]
    assert chat(system=system).messages == [*heads, USER]


HEADER = "x-anthropic-billing-header: cc_version=2.1.0; cch=00001;"


@pytest.mark.parametrize(
    "system",
    [
        [text(HEADER), text("Be brief.")],
        [text(f"{HEADER}\nBe brief.")],
        f"{HEADER}\nBe brief.",
        [text(HEADER), text(HEADER.replace("2.1.0", "2.1.1")), text("Be brief.")],
        [text(""), text(HEADER), text("Be brief.")],
        f"{HEADER}\n{HEADER}\nBe brief.",
        [text(HEADER.title()), text("Be brief.")],
    ],
)
def test_the_header_that_changes_is_taken_out(system: Any) -> None:
    assert chat(system=system).messages[0] == {"role": "system", "content": "Be brief."}


def test_what_only_looks_like_that_header_stays() -> None:
    later = [text("Be brief."), text(HEADER)]
    assert chat(system=later).messages[0]["content"] == f"Be brief.\n\n{HEADER}"
    assert chat(system=[text(HEADER)]).messages == [USER]


def test_equal_requests_are_equal_whatever_their_header_says() -> None:
    body = b'{"system":[{"type":"text","text":"%s"},{"type":"text","text":"a"}],"messages":[]}'
    one, other = body % HEADER.encode(), body % HEADER.replace("00001", "99999").encode()
    assert one != other
    assert stable(one) == stable(other) == stable(other.replace(b"x-anthropic", b"\\n X-Anthropic"))
    assert stable(one) != stable(one.replace(b'"a"', b'"b"'))
    told = body % (HEADER.encode() + rb"\nBe brief.")
    assert stable(told).count(b"Be brief.") == 1
    assert stable(b'{"messages":[]}') == b'{"messages":[]}'


def test_texts_of_a_message_are_apart() -> None:
    assert said(user(text("a"), text("b", citations=None))) == [
        {"role": "user", "content": "a\n\nb"}
    ]


def test_roles_may_repeat_and_a_system_message_stays_where_it_is() -> None:
    later = {"role": "system", "content": [text("later")]}
    told = said(USER, USER, {"role": "assistant", "content": "hi"}, later, USER)
    roles = [each["role"] for each in told]
    assert roles == ["user", "user", "assistant", "system", "user"]
    assert told[3]["content"] == "later"


def test_a_call_and_its_result() -> None:
    told = said(USER, assistant(text("I look."), CALL), user(RESULT))
    assert told == [USER, {"role": "assistant", "content": "I look.", "tool_calls": [CALLED]}, SEEN]


@pytest.mark.parametrize("order", [(RESULT, text("and?")), (text("and?"), RESULT)])
def test_results_come_before_what_the_user_says_besides(order: Any) -> None:
    other = {**RESULT, "tool_use_id": "unheard-of"}
    told = said(USER, assistant(CALL), user(*order, other))
    assert told[2:] == [
        SEEN,
        {"role": "tool", "tool_call_id": "unheard-of", "content": "seen"},
        {"role": "user", "content": "and?"},
    ]


@pytest.mark.parametrize(
    ("result", "told"),
    [
        ({"content": None}, ""),
        ({}, ""),
        ({"content": []}, ""),
        ({"content": [text("a"), text("b")]}, "a\n\nb"),
        ({"content": [{"type": "tool_reference", "tool_name": "look"}]}, "look"),
        ({"content": "no", "is_error": False}, "no"),
        ({"content": "no such file", "is_error": True}, "Error: no such file"),
        ({"content": "Error: no", "is_error": True}, "Error: no"),
        ({"content": "<error>no</error>", "is_error": True}, "<error>no</error>"),
        ({"is_error": True}, "Error"),
    ],
)
def test_results(result: dict[str, Any], told: str) -> None:
    base = {"type": "tool_result", "tool_use_id": "toolu_1"}
    assert said(USER, assistant(CALL), user({**base, **result}))[2]["content"] == told


def test_thoughts_are_given_back_whoever_has_signed_them() -> None:
    thoughts = [
        {
            "type": "thinking",
            "thinking": "shown",
            "signature": "EqQBCgIYAhIM1gbcDa9G",
        },
        {"type": "thinking", "thinking": "unsigned"},
        {"type": "thinking", "thinking": "", "signature": seal("hidden")},
        {"type": "thinking", "thinking": "", "signature": "anybody's"},
        {"type": "redacted_thinking", "data": "EmwKAhgBEgy3va3pzix"},
    ]
    told = said(USER, assistant(*thoughts, text("so")), USER)
    assert told[1] == {
        "role": "assistant",
        "content": "so",
        "reasoning_content": "shown\n\nunsigned\n\nhidden",
    }


def test_texts_of_an_assistant_are_one_but_where_something_stands_between() -> None:
    told = said(USER, assistant(text("As "), text("said"), CALL, text("So.")), user(RESULT), USER)
    assert told[1]["content"] == "As said\n\nSo."


DOCUMENTS: list[tuple[dict[str, Any], str]] = [
    (
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "d"}},
        "d",
    ),
    (
        {
            "type": "document",
            "title": "T",
            "context": "C",
            "source": {"type": "content", "content": [text("a"), text("b")]},
            "citations": {"enabled": True},
        },
        "T\nC\na\n\nb",
    ),
    ({"type": "document", "title": None, "source": {"type": "content", "content": "x"}}, "x"),
    ({"type": "search_result", "title": "T", "source": "u", "content": [text("r")]}, "T\nu\nr"),
]


@pytest.mark.parametrize(("block", "told"), DOCUMENTS)
def test_documents_of_text_are_text(block: dict[str, Any], told: str) -> None:
    assert said(user(text("see"), block))[0]["content"] == f"see\n\n{told}"
    result = {"type": "tool_result", "tool_use_id": "1", "content": [block]}
    assert said(user(result))[0]["content"] == told


def test_a_summary_is_text() -> None:
    kept = {"type": "compaction", "content": "earlier", "signature": "x"}
    assert said(assistant(kept), USER)[0] == {"role": "assistant", "content": "earlier"}
    failed = {"type": "compaction", "content": None}
    assert said(user(failed, text("a")))[0]["content"] == "a"


PASSED = [
    "server_tool_use",
    "web_search_tool_result",
    "web_fetch_tool_result",
    "code_execution_tool_result",
    "bash_code_execution_tool_result",
    "text_editor_code_execution_tool_result",
    "tool_search_tool_result",
    "advisor_tool_result",
    "mcp_tool_use",
    "mcp_tool_result",
    "mcp_tool_listing",
    "fallback",
]


@pytest.mark.parametrize("kind", PASSED)
def test_what_anthropics_servers_did_has_no_effect_and_is_named(kind: str) -> None:
    block = {"type": kind, "id": "srvtoolu_1", "name": "web_search", "input": {}, "content": []}
    messages = [USER, assistant(text("a"), block, text("b")), user(block, text("c"))]
    assert [each["content"] for each in said(*messages)[1:]] == ["a\n\nb", "c"]
    named = () if kind == "fallback" else (f"messages.{kind}",)
    assert parsed(messages=messages).ignored() == named


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": SECRET}}
INNER = "messages[1].content[0].content[0]"
PDF = {"type": "document", "source": {"type": "url", "url": SECRET}}


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ([text("a"), IMAGE], "messages[1].content[1]"),
        ([PDF], "messages[1].content[0]"),
        ([{"type": "tool_result", "tool_use_id": "1", "content": [IMAGE]}], INNER),
        ([{"type": "tool_result", "tool_use_id": "1", "content": [PDF]}], INNER),
        ([{"type": "container_upload", "file_id": SECRET}], "messages[1].content[0]"),
        ([{"type": "tool_addition", "tool": {}}], "messages[1].content[0]"),
        (
            [{"type": "document", "source": {"type": "content", "content": [IMAGE]}}],
            "messages[1].content[0]",
        ),
    ],
)  # fmt: skip
def test_what_is_no_text_is_refused_by_its_place(content: Any, place: str) -> None:
    error = refusal(messages=[USER, user(*content)])
    assert (type(error), error.param) == (UnsupportedValue, place)
    assert "text only" in error.message


def test_every_block_of_the_sdk_has_a_fate() -> None:
    """It is a type of ours, or refused by its place."""
    told = sdk_types(ContentBlockParam, BetaContentBlockParam)
    assert len(told) > 20
    known = {str(each.__struct_config__.tag) for each in get_args(blocks.ContentBlock)}
    refused = {"image", "container_upload", "tool_addition", "tool_removal"}
    assert told - known <= refused
    assert known <= told


@pytest.mark.parametrize(
    ("messages", "place"),
    [
        ([user(CALL)], "messages[0].content[0]"),
        ([user({"type": "thinking", "thinking": "x"})], "messages[0].content[0]"),
        ([assistant(RESULT), USER], "messages[0].content[0]"),
        ([{"role": "system", "content": [RESULT]}], "messages[0].content[0]"),
        ([{"role": "tool", "content": "x"}], "messages[0].role"),
    ],
)
def test_what_a_role_cannot_have(messages: Any, place: str) -> None:
    error = refusal(messages=messages)
    assert (type(error), error.param) == (UnsupportedValue, place)


@pytest.mark.parametrize(
    ("messages", "kind", "place"),
    [
        ([], InvalidValue, "messages"),
        ("hello", InvalidType, "messages"),
        ([user({"type": "text", "text": 1})], InvalidType, "messages[0].content[0].text"),
        ([assistant({**CALL, "input": "x"})], InvalidType, "messages[0].content[0].input"),
        ([assistant(HUGE), USER], InvalidValue, "messages[0].content[0].input"),
    ],
)  # fmt: skip
def test_what_is_malformed(messages: Any, kind: Any, place: str) -> None:
    error = refusal(messages=messages)
    assert (type(error), error.param) == (kind, place)


# ── the beginning of an answer ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "last", [{"role": "assistant", "content": "The best ("}, assistant(text("The best ("))]
)
def test_a_last_message_of_the_assistants_is_gone_on_with(last: Any) -> None:
    asked = chat(messages=[USER, last])
    assert asked.continues
    assert asked.messages[-1]["content"] == "The best ("
    assert not chat(messages=[last, USER]).continues


@pytest.mark.parametrize("last", [{"role": "assistant", "content": ""}, assistant()])
def test_an_empty_one_is_none(last: Any) -> None:
    asked = chat(messages=[USER, last])
    assert not asked.continues
    assert asked.messages == [USER]
    assert refusal(messages=[last]).param == "messages"


@pytest.mark.parametrize(
    "last",
    [
        assistant(text("a "), text(" \n")),
        assistant(CALL),
        assistant({"type": "thinking", "thinking": "x"}),
    ],
)
def test_what_no_answer_can_go_on_with(last: Any) -> None:
    error = refusal(messages=[USER, last])
    assert (type(error), error.param) == (InvalidValue, "messages[1].content")

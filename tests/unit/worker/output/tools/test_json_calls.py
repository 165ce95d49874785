"""worker.output.tools.json_calls, and the forms that read with it: nothing half is told of a call
that is no JSON. It is repaired where it has one reading, or stays in the text as it was written."""

from __future__ import annotations

import json

import pytest

from tests.helpers.dialects import (
    AUTO,
    GPT_OSS,
    HERMES,
    KIMI_K2,
    LLAMA,
    MISTRAL,
    Model,
    Pieces,
    Seen,
    everywhere,
    make,
    read,
)
from worker.output.tools.calls import REREAD
from worker.output.tools.json_repair import RepairingScanner

FORMS: dict[str, tuple[Model, str, str]] = {
    "hermes": (HERMES, '<tool_call>\n{"name": "f", "arguments": ', "}\n</tool_call>"),
    "hermes-list": (HERMES, '<tool_call>[{"name": "f", "arguments": ', "}]</tool_call>"),
    "hermes-late": (HERMES, '<tool_call>{"arguments": ', ', "name": "f"}</tool_call>'),
    "llama": (LLAMA, '{"name": "f", "parameters": ', "}"),
    "llama-tag": (LLAMA, '<|python_tag|>{"name": "f", "parameters": ', "}"),
    "mistral": (MISTRAL, "[TOOL_CALLS]f[ARGS]", ""),
    "mistral-list": (MISTRAL, '[TOOL_CALLS] [{"name": "f", "arguments": ', "}]"),
    "kimi": (
        KIMI_K2,
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>",
        "<|tool_call_end|><|tool_calls_section_end|>",
    ),
    "harmony": (
        GPT_OSS,
        "<|channel|>commentary to=functions.f <|constrain|>json<|message|>",
        "<|call|>",
    ),
}
GOOD = '{"a": [1, {"b": "x"}]}'

REPAIRED = {
    r'{"pattern": "\d+"}': r'{"pattern": "\\d+"}',
    r'{"path": "C:\Users"}': r'{"path": "C:\\Users"}',
    r'{"path": "C:\users\%"}': r'{"path": "C:\\users\\%"}',
    r'{"a": "\u12"}': r'{"a": "\\u12"}',
    r'{"a": "\u12\u00e9"}': r'{"a": "\\u12\u00e9"}',
    r'{"a": "\\d \" \/ \n \u00e9"}': r'{"a": "\\d \" \/ \n \u00e9"}',
    r'{"\d": 1}': r'{"\\d": 1}',
    '{"a": "x\\\ny"}': r'{"a": "x\\\ny"}',
    '{"a": 1,}': '{"a": 1}',
    '{"a": [1, 2,\n ], }': '{"a": [1, 2\n ] }',
    '{"a": {"b": 1,},}': '{"a": {"b": 1}}',
    '{"a": "one\ntwo"}': r'{"a": "one\ntwo"}',
    '{"a": "\t\x00\x1f\r"}': r'{"a": "\t\u0000\u001f\r"}',
    '{"a": "\x7f\u2028é"}': '{"a": "\x7f\u2028é"}',
    '{"a": 1,\n\n\t"b": 2\n}': '{"a": 1,\n\n\t"b": 2\n}',
    '{"a": 1\n"b": "x"\n "c": [1\n2\n"x"\n{}]}': '{"a": 1\n,"b": "x"\n ,"c": [1\n,2\n,"x"\n,{}]}',
    '{"a": True, "b": [False, None]}': '{"a": true, "b": [false, null]}',
    '{"a": 1, "a": 2}': '{"a": 1, "a": 2}',
    '{"a": "\\ud800"}': '{"a": "\\ud800"}',
    "{}": "{}",
    GOOD: GOOD,
}
TEXT = [
    '{"a": NaN}',
    '{"a": -Infinity}',
    '{"a": Infinity}',
    "{'a': 1}",
    "{a: 1}",
    '{"a": nothing}',
    '{"a": Truely}',
    '{"a": 1 // one\n}',
    '{"a": 1 /* one */}',
    '{"a": 1 "b": 2}',
    '{"a": "say "hi" now"}',
    '{"a": 1,, "b": 2}',
    '{"a": [,]}',
    '{"a": 01}',
    '{"a": 1.}',
    '{"a": }',
    '{"a"}',
    '{"a": 1]',
    "7",
    "[1]",
    '"x"',
    '"{\\"a\\": NaN}"',
    '"[1]"',
    "tru",
]


def args_of(form: str, arguments: str) -> str:
    _, before, after = FORMS[form]
    return before + arguments + after


def shown(form: str, text: str) -> str:
    """What of a text that is no call is shown: harmony's marks never are."""
    if not form.startswith("harmony"):
        return text
    _, before, after = FORMS[form]
    return "to=functions.f " + text.removeprefix(before).removesuffix(after)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("written", REPAIRED)
def test_what_has_one_reading_is_repaired(form: str, written: str) -> None:
    model, *_ = FORMS[form]
    seen = everywhere(model, args_of(form, written))
    assert seen == Seen("", [("f", REPAIRED[written])], "tool_calls")
    assert isinstance(json.loads(seen.calls[0][1]), dict)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("written", TEXT)
def test_what_has_none_stays_in_the_text(form: str, written: str) -> None:
    model, *_ = FORMS[form]
    for after in ("", " So.", "\n\nSo."):
        text = args_of(form, written) + after
        seen = everywhere(model, text)
        if model is GPT_OSS:  # whose marks are never shown
            assert (seen.calls, seen.reason) == ([], "stop")
            assert f"to=functions.f {written}" in seen.text
        else:
            assert seen == Seen(text, [], "stop")


HERMES_BROKEN = [
    '<tool_call>\n{"name": "f", "arguments": {"note": "cabin 5}}\n</tool_call>',
    '<tool_call>\n{"name": "f", "arguments": {"a": NaN}}\n</tool_call>',
    '<tool_call>\n{"name": "f", "arguments": {"a": 1}, "arguments": {"a": 1}}\n</tool_call>',
    '<tool_call>\n{"name": "f", "arguments": {"a": 1}, "parameters": {"a": 1}}\n</tool_call>',
    '<tool_call>\n{"name": "f", "name": "g", "arguments": {"a": 1}}\n</tool_call>',
    '<tool_call>\n{"name": "f", "arguments": {"a": 1,\n</tool_call>',
    '<tool_call>\n{"name": "f", "arguments": {"a":\n</tool_call>',
    '<tool_call>\n{"name": "f"\n</tool_call>',
    '<tool_call>\n{"name": "f", "arguments":\n</tool_call>',
    '<tool_call>\n{"name": "f", "arguments": \'{"a": 1}\'}\n</tool_call>',
    '<tool_call>\n{"name": "f", "arguments": "{"a": 1}"}\n</tool_call>',
    '<tool_call>\n{"name": f, "arguments": {}}\n</tool_call>',
    '<tool_call>\n{"name": "f", "arguments": {"a": "b}\n</tool_call>\nand "so" on',
]
CALL = '<tool_call>\n{"name": "g", "arguments": {"x": "y"}}\n</tool_call>'
G = ("g", '{"x": "y"}')


@pytest.mark.parametrize("broken", HERMES_BROKEN)
def test_a_good_call_beside_a_broken_one_is_one(broken: str) -> None:
    assert everywhere(HERMES, broken) == Seen(broken, [], "stop")
    assert everywhere(HERMES, f"{CALL}\n{broken}") == Seen(broken, [G], "tool_calls")
    assert everywhere(HERMES, f"{broken}\n{CALL}") == Seen(broken, [G], "tool_calls")
    seen = everywhere(HERMES, f"So: {broken}\n{CALL}\n{broken} {CALL} End.")
    assert seen == Seen(f"So: {broken}\n{broken}  End.", [G, G], "tool_calls")


def test_a_good_call_beside_a_broken_one_in_other_forms() -> None:
    bad, good = '{"note": "cabin 5}', '{"x": "y"}'
    for broken in (bad, '{"a": NaN}', "{'a': 1}", '{"a": 1,'):
        mistral = f"[TOOL_CALLS]f[ARGS]{broken}"
        call = f"[TOOL_CALLS]g[ARGS]{good}"
        assert everywhere(MISTRAL, mistral + call) == Seen(mistral, [G], "tool_calls")
        assert everywhere(MISTRAL, call + mistral).calls == [G]
        assert everywhere(MISTRAL, call + mistral).text in (
            mistral,
            mistral.removeprefix("[TOOL_CALLS]"),
        )

        begin, end = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
        argument = "<|tool_call_argument_begin|>"
        kimi = f"<|tool_call_begin|>functions.f:0{argument}{broken}<|tool_call_end|>"
        call = f"<|tool_call_begin|>functions.g:1{argument}{good}<|tool_call_end|>"
        assert everywhere(KIMI_K2, begin + kimi + end) == Seen(begin + kimi + end, [], "stop")
        seen = everywhere(KIMI_K2, begin + kimi + call + end)
        assert seen == Seen(begin + kimi, [G], "tool_calls")
        assert everywhere(KIMI_K2, begin + call + kimi + end) == Seen(kimi, [G], "tool_calls")
        seen = everywhere(KIMI_K2, begin + call + kimi + call + kimi + end + "End.")
        assert seen == Seen(f"{kimi}{kimi}End.", [G, G], "tool_calls")

        harmony = f"<|channel|>commentary to=functions.f <|constrain|>json<|message|>{broken}"
        call = f"<|channel|>commentary to=functions.g <|constrain|>json<|message|>{good}<|call|>"
        between = "<|call|><|start|>assistant"
        expected = Seen(f"to=functions.f {broken}", [G], "tool_calls")
        assert everywhere(GPT_OSS, harmony + between + call) == expected
        assert everywhere(GPT_OSS, f"{call}<|start|>assistant{harmony}<|call|>") == expected


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("written", "told"),
    [
        ('{"a": 1', '{"a": 1}'),
        ('{"a": "x"', '{"a": "x"}'),
        ('{"a": [1, 2', '{"a": [1, 2]}'),
        ('{"a": {"b": [True', '{"a": {"b": [true]}}'),
        ('{"a": [', '{"a": []}'),
        ("{", "{}"),
        ('{"a": 1\n', '{"a": 1\n}'),
    ],
)
def test_brackets_that_the_calls_end_leaves_open_are_closed(
    form: str, written: str, told: str
) -> None:
    if form == "hermes-late":
        return
    model, before, after = FORMS[form]
    ends = {"hermes": "\n</tool_call>", "hermes-list": "</tool_call>", "kimi": after,
        "harmony": after}  # fmt: skip
    text = before + written + ends.get(form, "")
    seen = everywhere(model, text)
    assert (seen.text, seen.reason) == ("", "tool_calls")
    assert [(name, json.loads(args)) for name, args in seen.calls] == [("f", json.loads(told))]
    # Where the model ends its answer the call ends too; where its length does, who knows.
    text = before + written
    seen = everywhere(model, text)
    assert [(name, json.loads(args)) for name, args in seen.calls] == [("f", json.loads(told))]
    seen = everywhere(model, text, cut=True)
    assert (seen.calls, seen.reason) == ([], "stop")
    assert seen.text.endswith(written)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "written", ['{"note": "cabin 5}', '{"a": 1,', '{"a":', '{"a"', '{"a": tr', '{"a": -']
)
def test_what_else_is_missing_is_nobodys_guess(form: str, written: str) -> None:
    model, before, _ = FORMS[form]
    for cut in (False, True):
        seen = everywhere(model, before + written, cut=cut)
        assert (seen.calls, seen.reason) == ([], "stop")
        assert seen.text == shown(form, before + written)


def test_brackets_that_are_one_too_many_are_dropped_before_the_end_marker() -> None:
    call = '<tool_call>\n{"name": "g", "arguments": {"x": "y"}}'
    for more in ("}", "}\n}", "]", " } "):
        assert everywhere(HERMES, f"{call}{more}\n</tool_call>") == Seen("", [G], "tool_calls")
    seen = everywhere(HERMES, f"{call}}} Done.")
    assert seen == Seen("} Done.", [G], "tool_calls")


def test_arguments_as_text_are_repaired_as_well() -> None:
    for written, told in ((r'{"a": "\d"}', r'{"a": "\\d"}'), ('{"a": 1,}', '{"a": 1}')):
        for form in ("hermes", "hermes-list", "hermes-late", "llama", "mistral-list"):
            model, *_ = FORMS[form]
            seen = everywhere(model, args_of(form, json.dumps(written)))
            assert seen == Seen("", [("f", told)], "tool_calls")


def test_a_text_goes_on_as_soon_as_it_is_no_call() -> None:
    transcript = make(HERMES, AUTO)
    pieces = ['<tool_call>{"name": "f", "arguments": {"a": ', "N", "a", "N}}", "</tool_call>", "x"]
    transcript._decoder = Pieces(pieces)
    told = [transcript.push(token).text for token in range(len(pieces))]
    assert told[:2] == ["", ""]
    assert "".join(told) == "".join(pieces)
    assert told[-1] == "x"


@pytest.mark.parametrize(
    ("model", "piece"),
    [
        (HERMES, '<tool_call>{"'),
        (HERMES, '<tool_call>{":"<tool_call>{","'),
        (HERMES, '<tool_call>{"a": "'),
        (KIMI_K2, '<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{":","'),
        (GPT_OSS, '<|channel|>commentary to=f<|message|>{":","'),
    ],
)
def test_little_is_read_again(model: Model, piece: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each marker is inside of a string that begins with the one before."""
    read_so_far = 0
    push = RepairingScanner.push

    def counted(self: RepairingScanner, letter: str) -> None:
        nonlocal read_so_far
        read_so_far += 1
        push(self, letter)

    monkeypatch.setattr(RepairingScanner, "push", counted)
    text = piece * 4000
    if model is KIMI_K2:
        text = f"<|tool_calls_section_begin|>{text}"
    pieces = [text[at : at + 4] for at in range(0, len(text), 4)]
    seen = read(model, pieces)
    assert (seen.calls, seen.reason) == ([], "stop")
    assert read_so_far < len(text) + 2 * REREAD

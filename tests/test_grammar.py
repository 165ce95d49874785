"""Grammars: what is compiled, what is refused, and what the masks allow at every point."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from typing import Any

import llguidance
import numpy as np
import pytest

from supervisor.errors import ClientError, InvalidValue, UnsupportedValue
from supervisor.wire.frames import Calling, Chat, Generate, Structure, Text
from tests import structured
from tests.structured import Chooser, allowed, constraint, fault, sample, text_of, wrapper
from worker.grammar import Grammar, Grammars, fill
from worker.grammar_patterns import foreign, merged
from worker.grammar_patterns import size as states
from worker.grammar_schema import MAX_TEXT, compilable
from worker.lead import Lead, Marks

HANGS = 30.0
"""Seconds after which something hangs: what is tested takes under one."""
OBJECT = {"type": "object"}
CLOSED = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}


def push(grammar: Grammar, text: str, kind: str = "bytes") -> list[int]:
    """Push the text, every token of which must be allowed."""
    tokens: list[int] = structured.wrapper(kind).encode(text, add_special_tokens=False)
    follow(grammar, tokens)
    return tokens


def follow(grammar: Grammar, tokens: Sequence[int]) -> None:
    for token in tokens:
        assert token in allowed(grammar)
        grammar.push(token)


def accepts(schema: object, text: str) -> bool:
    grammar = constraint(schema)
    for token in wrapper().encode(text, add_special_tokens=False):
        if token not in allowed(grammar):
            return False
        grammar.push(token)
    return grammar.complete


def ends(kind: str = "bytes") -> list[int]:
    return sorted(wrapper(kind).eos_token_ids)


# ── which requests have a grammar, and which schemas are refused ─────────────────────────────────


def test_a_plain_request_has_none() -> None:
    grammars = structured.grammars()
    assert grammars.compile(Generate("r", Text("x"), 0.0)) is None
    chat = Chat([], tools=[TOOL])
    assert grammars.compile(Generate("r", chat, 0.0, calling=Calling("auto", ("f",)))) is None


@pytest.mark.parametrize("name", structured.refused())
def test_refused(name: str) -> None:
    schema, word = structured.refused()[name]
    with pytest.raises((InvalidValue, UnsupportedValue)) as caught:
        constraint(schema)
    assert caught.value.param == "response_format"
    assert word in caught.value.message
    assert len(caught.value.message) < 500


@pytest.mark.parametrize("text", ["", "{", '{"const": NaN}', "nul", "[" * 100_000, "{} {}"])
def test_what_is_not_json(text: str) -> None:
    with pytest.raises(InvalidValue, match="not JSON"):
        structured.grammars().compile(Generate("r", Text("x"), 0.0, structure=Structure(text)))


def nested(levels: int, keyword: str = "properties") -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {keyword: {"a": schema} if keyword == "properties" else schema}
    return schema


def chain(links: int, step: str) -> dict[str, Any]:
    """Definitions that lead from one to the next: they overflowed llguidance's stack."""

    def link(i: int) -> dict[str, Any]:
        if i == links:
            return {"type": "null"}
        ref = {"$ref": f"#/$defs/d{i}"}
        return {"properties": {"a": ref}} if step == "properties" else {step: [ref, OBJECT]}

    return {"$ref": "#/$defs/d0", "$defs": {f"d{i}": link(i + 1) for i in range(links)}}


HARD: dict[str, Any] = {
    "10 MB": {"description": "x" * 10_000_000},
    "deep members": nested(5_0),
    "deeper members": nested(200),
    "deep items": nested(90, "items"),
    "deeper items": nested(300, "items"),
    "short chain": chain(100, "properties"),
    "long chain": chain(2000, "properties"),
    "long chain of choices": chain(2000, "anyOf"),
    "long chain of merges": chain(2000, "allOf"),
    "a billion items": {"type": "array", "minItems": 10**9},
    "a billion characters": {"type": "string", "minLength": 10**9},
    "at most a billion": {"type": "string", "maxLength": 10**9},
    "repetitions": {"type": "string", "pattern": "((((a{0,99}){0,99}){0,99}){0,99}){0,99}"},
    "a billion letters": {"type": "string", "pattern": "a{1000000000}"},
    "states": {"type": "string", "pattern": "[ab]*a[ab]{30}"},
    "backtracking": {"type": "string", "pattern": "^(a+)+$"},
    "brackets": {"type": "string", "pattern": "(" * 500 + "a" + ")*" * 500},
    "intersection": {"allOf": [{"type": "string", "pattern": f"^(.*a{{{i}}})*$"} for i in range(9)]},
    "huge enum": {"enum": [f"value {i}" for i in range(9000)]},
    "huge members": {"properties": {f"p{i}": {} for i in range(5000)}},
    "many members": {"properties": {f"p{i}": {} for i in range(999)}},
    "many patterns": {"patternProperties": {f"^{i}x": {} for i in range(500)}},
    "merged choices": {"allOf": [{"anyOf": [{"required": [f"{i}{j}"]} for j in range(5)]} for i in range(9)]},
    "multiple": {"type": "integer", "multipleOf": 2**50},
    "small multiple": {"type": "number", "multipleOf": 1e-300},
    "no end": {"$ref": "#/$defs/a", "$defs": {"a": {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "required": ["a"]}}},
    "wrong everywhere": {"type": None, "properties": 5, "required": {}, "enum": 1, "allOf": 3},
    "wrong allOf and format": {"format": "date", "allOf": 7},
    "wrong required": {"required": [1, None, {}]},
    "wrong names": {"required": 7, "properties": None},
    "wrong reference": {"$ref": 5},
    "reference to no schema": {"$ref": "#/x/0", "x": [5]},
    "reference past the end": {"$ref": "#/x/7", "x": [5]},
    "empty reference": {"$ref": ""},
    "options of the wrong type": {"x-guidance": 5, "type": "null"},
}  # fmt: skip


@pytest.mark.parametrize("name", HARD)
def test_nothing_hangs_or_kills(name: str) -> None:
    """Served or refused, but soon; the masks too."""
    structured.grammars().compile(structured.request({}))
    started = time.monotonic()
    match outcome(HARD[name]):
        case ClientError() as error:
            assert error.param == "response_format"
            assert len(error.message) < 1000
        case grammar:
            choose = Chooser(wrapper(), 1)
            for length in range(8):
                tokens = allowed(grammar)
                assert tokens
                grammar.push(choose(tokens, length))
    assert time.monotonic() - started < HANGS


def outcome(schema: object) -> Grammar | ClientError:
    try:
        return constraint(schema)
    except ClientError as error:
        return error


@pytest.mark.parametrize(
    ("name", "served"),
    [("short chain", True), ("long chain", False), ("10 MB", False), ("many members", True)],
)
def test_what_is_too_big_is_refused_and_what_is_not_is_served(name: str, served: bool) -> None:
    if served:
        constraint(HARD[name])
    else:
        with pytest.raises(ClientError):
            constraint(HARD[name])


def test_messages_are_short_and_say_where() -> None:
    with pytest.raises(UnsupportedValue, match="`not` is not supported \\(at #/properties/a/items"):
        constraint({"properties": {"a": {"items": {"not": {}}}}})
    with pytest.raises(UnsupportedValue) as caught:
        constraint({"properties": {"x" * 4000: {"not": {}}}})
    assert len(caught.value.message) < 500
    with pytest.raises(InvalidValue, match=str(MAX_TEXT)):
        constraint({"description": "x" * MAX_TEXT})


@pytest.mark.parametrize(
    ("pattern", "strange"),
    [
        ("^[a-z]+$", False), ("[\\[]", False), ("\\[[a]\\]", False), ("[-&~]", False),
        ("(?:a|b)(?<x>c)", False), ("[a[b]]", True), ("[a&&b]", True), ("[a--b]", True),
        ("[]a]", True), ("[^]a]", True), ("(?x)a", True), ("(?P<x>a)", True), ("(?i)a", False),
    ],
)  # fmt: skip
def test_patterns_that_mean_something_else(pattern: str, strange: bool) -> None:
    assert bool(foreign(pattern)) == strange


@pytest.mark.parametrize(
    ("pattern", "many"),
    [
        ("abc", 3), ("^a$", 1), ("", 1), ("a*b+", 2), ("[a-z]{3}", 3), ("(ab){10}", 20), ("a{2,7}", 7),
        ("a{5,}", 5), ("((ab){3}c){4}", 28), ("\\d{4}-\\d{2}", 7), ("[\\]}]x", 2), ("a{b", 3), ("(a", 1), ("a)b", 3),
    ],
)  # fmt: skip
def test_states_of_a_pattern(pattern: str, many: int) -> None:
    assert states(pattern) == many


LONG, LONGER = "^(a{397})*$", "^(a{401})*$"


@pytest.mark.parametrize(
    ("schema", "slow"),
    [
        ({"allOf": [{"pattern": LONG}, {"pattern": LONGER}]}, True),
        ({"allOf": [{"pattern": LONG}, {"pattern": LONG}]}, False),
        ({"allOf": [{"pattern": LONG}, {"pattern": "^[ab]{9}$"}]}, False),
        ({"$ref": "#/$defs/a", "pattern": LONG, "$defs": {"a": {"pattern": LONGER}}}, True),
        ({"pattern": LONG, "anyOf": [{"pattern": LONGER}]}, True),
        ({"allOf": [{"properties": {"a": {"pattern": LONG}}}, {"properties": {"a": {"pattern": LONGER}}}]}, True),
        ({"allOf": [{"properties": {"a": {"pattern": LONG}}}, {"properties": {"b": {"pattern": LONGER}}}]}, False),
        ({"allOf": [{"properties": {"a": {"pattern": LONG}}}, {"additionalProperties": {"pattern": LONGER}}]}, True),
        ({"allOf": [{"items": {"pattern": LONG}}, {"prefixItems": [{"pattern": LONGER}]}]}, True),
        ({"properties": {"a": {"$ref": "#/$defs/a"}, "b": {"$ref": "#/$defs/b"}}, "$defs": {"a": {"pattern": LONG}, "b": {"pattern": LONGER}}}, False),
        ({"allOf": [{"$ref": "#"}, {"properties": {"a": {"$ref": "#"}}}], "pattern": LONG}, False),
    ],
)  # fmt: skip
def test_patterns_that_may_hold_at_once_are_short(schema: dict[str, Any], slow: bool) -> None:
    """llguidance takes seconds, or for ever, to find out whether they can all be met."""
    found = schema.get("$defs", {})
    assert merged(schema, {f"#/$defs/{name}": each for name, each in found.items()}.get) == slow


def test_merged_patterns_are_refused_before_llguidance_sees_them() -> None:
    with pytest.raises(UnsupportedValue, match="patterns"):
        constraint({"allOf": [{"pattern": LONG}, {"pattern": LONGER}]})
    constraint({"properties": {"a": {"pattern": LONG}, "b": {"pattern": LONGER}}})


# ── what answers may be ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("schema", "text", "valid"),
    [
        (OBJECT, '{"a": 1}', True),
        (OBJECT, '{"a":1,"b":[]}', True),
        (OBJECT, '{"a":  1}', False),
        (OBJECT, '{ "a": 1}', False),
        (OBJECT, '{"a"\n: 1}', False),
        (OBJECT, ' {"a": 1}', False),
        (OBJECT, "[]", False),
        (CLOSED, '{"a": 1, "b": 2}', False),
        ({"x-guidance": {"whitespace_flexible": True, "lenient": True}, **CLOSED}, '{"a":   1}', False),
        # Another spelling of the name must not get around its schema.
        ({**CLOSED, "additionalProperties": True}, '{"a": 1, "\\u0061": "x"}', False),
        ({**CLOSED, "additionalProperties": True}, '{"a": 1, "a": "x"}', False),
        ({"properties": {"b": {}, "a": {}}, "type": "object"}, '{"b": 1, "a": 2}', True),
        ({"properties": {"b": {}, "a": {}}, "type": "object"}, '{"a": 1, "b": 2}', False),
        ({"type": "string", "maxLength": 1}, '"\\ud83d\\ude00"', False),
        ({"type": "string", "maxLength": 1}, '"😀"', True),
        ({"type": "string", "minLength": 2}, '"😀"', False),
        ({"type": "string", "format": "time"}, '"12:00:60Z"', False),
        ({"type": "string", "format": "time"}, '"12:00:59Z"', True),
        ({"type": "string", "format": "date"}, '"2023-02-29"', False),
        ({"type": "string", "format": "date"}, '"1900-02-29"', False),
        ({"type": "string", "format": "date"}, '"2024-02-29"', True),
        ({"type": "string", "format": "date"}, '"2000-02-29"', True),
        ({"type": "string", "format": "date", "pattern": "5$"}, '"2024-12-25"', True),
        ({"type": "string", "format": "date", "allOf": [{"pattern": "5$"}]}, '"2024-12-26"', False),
        ({"type": ["integer", "null"], "format": "phone"}, "null", False),
    ],
)  # fmt: skip
def test_rules(schema: Any, text: str, valid: bool) -> None:
    if "phone" in str(schema):
        # Formats are about strings alone.
        constraint(schema)
        return
    assert accepts(schema, text) == valid


MARKERS = ("a<|im_end|>b", "<|end|>", "<think>", "</tool_call>")


@pytest.mark.parametrize("marker", MARKERS)
def test_special_tokens_texts_are_texts(marker: str) -> None:
    """llguidance wants them as their tokens, and then refuses these."""
    name = {"properties": {marker: {}}, "required": [marker], "additionalProperties": False}
    model = wrapper(thinks=True, hermes=True)
    made = Grammars(model, len(model))
    for schema in ({"const": marker}, {"enum": [marker]}, {"type": "object", **name}):
        grammars = [made.compile(structured.request(schema)) for _ in range(4)]
        found = sample(
            [grammar for grammar in grammars if grammar],
            [Chooser(model, seed, patience=9.0) for seed in range(4)],
        )
        for tokens in found:
            assert tokens is not None
            assert not fault(schema, text_of(model, tokens))


def test_true_is_any_value() -> None:
    assert accepts(True, "[1, null]")


@pytest.mark.parametrize("kind", ["bytes", "spm"])
def test_sampled_answers_are_valid(kind: str) -> None:
    """ollama#17013: schemas were ignored in silence. The short form of `python -m tests.structured`."""
    ended, why = structured.run(6 * len(structured.served()), 7, kind)
    assert not why
    assert {name for name in structured.served() if not ended[name]} <= structured.RARELY


def test_the_judge_can_say_no() -> None:
    assert fault(CLOSED, '{"a": "x"}')
    assert fault({"type": "string", "format": "date"}, '"2023-02-30"')
    assert fault({}, "{")
    assert not fault(CLOSED, '{"a": 3}')


def test_an_error_is_told_and_not_taken_for_an_end(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llguidance gives up on some patterns while it follows them."""
    monkeypatch.setattr(
        "worker.grammar._limits",
        lambda: llguidance.LLParserLimits(max_lexer_states=300, verbose_errors=False),
    )
    grammar = constraint({"type": "string", "pattern": "(.*a.{20}){5}"})
    choose = Chooser(wrapper(), 1, patience=1e9)
    with caplog.at_level(logging.WARNING):
        for length in range(400):
            tokens = allowed(grammar)
            if grammar.broken:
                break
            letters = [t for t in tokens if wrapper().decode([t]) in ("a", "b")]
            grammar.push(choose(sorted(letters) if length else tokens, 0))
    assert grammar.broken
    assert tokens == ends()
    assert not grammar.complete
    error = grammar.fault(called=False)
    assert error is not None
    assert grammar.broken in error.message
    assert error.status < 500
    assert grammar.broken in caplog.text
    assert "aa" not in caplog.text


def test_an_answer_whose_grammar_gave_up_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "worker.grammar._limits",
        lambda: llguidance.LLParserLimits(max_lexer_states=60, verbose_errors=False),
    )
    schema = {"type": "string", "pattern": "(.*b.{20}){5}"}
    monkeypatch.setattr(structured, "served", lambda: {"hard": schema})
    _, why = structured.run(16, 1, "bytes")
    assert why.startswith("'hard'")


# ── masks ────────────────────────────────────────────────────────────────────────────────────────


def test_masks_are_packed_and_end_with_the_vocabulary() -> None:
    grammars = [constraint(OBJECT), constraint({"type": "integer"}), constraint({"const": "x"})]
    words = grammars[0].vocabulary.words
    masks = fill(grammars, words)
    assert masks.dtype == np.int32
    assert masks.shape == (3, words)
    bits = np.unpackbits(masks.view(np.uint8), axis=1, bitorder="little")
    assert not bits[:, len(wrapper()) :].any()
    brace = wrapper().encode("{")[0]
    assert bits[:, brace].tolist() == [1, 0, 0]
    for row, grammar in enumerate(grammars):
        assert np.flatnonzero(bits[row]).tolist() == allowed(grammar)
    assert fill(grammars, words + 3)[:, words:].tolist() == [[0] * 3] * 3
    assert fill(grammars, words + 3)[:, :words].tolist() == masks.tolist()
    assert fill([], words).shape == (0, words)


def test_fewer_logits_than_tokens() -> None:
    """Ids that have no logit are never allowed, whatever the tokenizer calls them."""
    size = len(wrapper()) - 1
    grammar = Grammars(wrapper(), size).compile(structured.request(OBJECT))
    assert grammar is not None
    push(grammar, "{}")
    assert grammar.vocabulary.words == (size + 31) // 32
    assert allowed(grammar) == ends()[:1]


def test_every_end_is_allowed_after_a_whole_answer_and_none_before() -> None:
    grammar = constraint(CLOSED)
    assert len(ends()) == 2
    push(grammar, '{"a": 1')
    assert not set(ends()) & set(allowed(grammar))
    assert not grammar.complete
    whole = constraint(CLOSED)
    push(whole, '{"a": 1}')
    assert whole.complete
    assert allowed(whole) == ends()


def test_where_the_answer_may_go_on_it_may_also_end() -> None:
    grammar = constraint({"type": "integer"})
    push(grammar, "12")
    assert set(ends()) < set(allowed(grammar))


@pytest.mark.parametrize("late", [7, 10**9, -1])
def test_tokens_that_were_not_allowed_end_the_answer(late: int) -> None:
    """Steps run one ahead: what comes after the end is of no account."""
    grammar = constraint(CLOSED)
    push(grammar, '{"a": 1}')
    for token in (ends()[1], late, ends()[0], 65, 66):
        grammar.push(token)
        assert allowed(grammar) == ends()
    grammar = constraint(CLOSED)
    push(grammar, '{"a"')
    grammar.push(late)
    grammar.push(late)
    assert allowed(grammar) == ends()
    assert grammar.over
    assert not grammar.complete
    assert not grammar.broken
    assert grammar.fault(called=False)
    assert grammar.fault(called=True)


def test_replay_yields_the_same_state() -> None:
    schema = structured.served()["invoice"]
    (tokens,) = sample([constraint(schema)], [Chooser(wrapper(), 5)])
    assert tokens is not None
    first = constraint(schema)
    for at, token in enumerate(tokens):
        if at % 9 == 0:
            again = constraint(schema)
            for earlier in tokens[:at]:
                again.push(earlier)
            assert allowed(again) == allowed(first)
        first.push(token)


def test_requests_of_one_schema_don_t_share_a_state() -> None:
    one, other = constraint(CLOSED), constraint(CLOSED)
    push(one, '{"a"')
    push(other, '{"a": 1')
    assert allowed(one) != allowed(other)
    push(one, ": 5}")


def test_compiled_once_and_the_cache_is_bounded() -> None:
    grammars = Grammars(wrapper(), len(wrapper()))
    for i in range(40):
        grammars.compile(structured.request({"const": i}))
    assert len(grammars._cache) == 32
    first = next(iter(grammars._cache))
    grammars.compile(structured.request({"const": 8}))
    assert next(iter(grammars._cache)) != first
    assert len(grammars._cache) == 32


# ── tokenizers ───────────────────────────────────────────────────────────────────────────────────


class Slow:
    """A tokenizer without tokenizer.json, in mlx-lm's wrapper."""

    has_thinking = False
    tool_parser = None
    decode = None
    eos_token_ids = frozenset({1})

    def __len__(self) -> int:
        return 10

    def get_vocab(self) -> dict[str, int]:
        return {}


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(UnsupportedValue, match="tokenizer") as caught:
        Grammars(Slow(), 10).compile(structured.request({}))
    assert caught.value.param == "response_format"


def test_a_tokenizer_that_makes_llguidance_panic_is_refused(
    capfd: pytest.CaptureFixture[str],
) -> None:
    from mlx_lm.tokenizer_utils import TokenizerWrapper
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(vocab={"<e>": 0, "x" * 5000: 1, "x": 2}, merges=[]))
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, eos_token="<e>"
    )
    with pytest.raises(UnsupportedValue, match="tokenizer"):
        Grammars(TokenizerWrapper(fast), 3).compile(structured.request({}))


def test_sentencepiece_with_byte_fallback() -> None:
    grammar = constraint({"const": "日本 x"}, "spm")
    push(grammar, '"日本 x"', "spm")
    assert allowed(grammar) == ends("spm")


# ── tool calls ───────────────────────────────────────────────────────────────────────────────────

TOOL: dict[str, Any] = {"type": "function", "function": {"name": "f", "parameters": CLOSED}}
ODD = 'g "é'
TOOLS: list[dict[str, Any]] = [
    TOOL,
    {"type": "function", "function": {"name": ODD, "parameters": {}}},
    {"type": "function", "function": {"name": "h", "parameters": {"properties": {"b": {}}}}},
]


def calling(
    tools: Sequence[dict[str, Any]] = TOOLS,
    names: Sequence[str] = ("f", ODD, "h"),
    *,
    parallel: bool = True,
    hermes: bool = False,
) -> tuple[Any, Grammar]:
    model = wrapper(hermes=hermes)
    request = Generate(
        "r",
        Chat([], tools=list(tools)),
        0.0,
        calling=Calling("required", tuple(names), parallel),
        structure=Structure('{"type": "integer"}'),
    )
    made = Grammars(model, len(model)).compile(request)
    assert made is not None
    return model, made


def encode(model: Any, text: str) -> list[int]:
    tokens: list[int] = model.encode(text, add_special_tokens=False)
    return tokens


def test_calls_as_an_array() -> None:
    model, grammar = calling()
    call = '{"name": "f", "arguments": {"a": 1}}'
    follow(grammar, encode(model, f"[{call}"))
    assert model.encode("]")[0] in allowed(grammar)
    odd = '{"name": "g \\"é", "arguments": {"x": [1, 2]}}'
    follow(grammar, encode(model, f', {odd}, {{"name": "h", "arguments": {{"b": null}}}}]'))
    assert allowed(grammar) == ends()


def test_calls_in_the_form_of_hermes() -> None:
    """The markers are tokens of their own."""
    model, grammar = calling(hermes=True)
    (opening,) = encode(model, "<tool_call>")
    assert allowed(grammar) == [opening]
    call = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
    follow(grammar, encode(model, call))
    assert allowed(grammar) == sorted([*model.eos_token_ids, *encode(model, "\n")])
    follow(grammar, encode(model, "\n" + call))
    assert grammar.complete


@pytest.mark.parametrize("hermes", [False, True])
def test_one_call_where_they_may_not_be_parallel(hermes: bool) -> None:
    model, grammar = calling(parallel=False, hermes=hermes)
    call = '{"name": "f", "arguments": {"a": 1}}'
    follow(grammar, encode(model, f"<tool_call>\n{call}\n</tool_call>" if hermes else f"[{call}]"))
    assert allowed(grammar) == sorted(model.eos_token_ids)


@pytest.mark.parametrize("hermes", [False, True])
def test_the_number_of_calls_is_bounded(hermes: bool) -> None:
    model, grammar = calling(hermes=hermes)
    call = '{"name": "f", "arguments": {"a": 1}}'
    text = (
        "\n".join([f"<tool_call>\n{call}\n</tool_call>"] * 16)
        if hermes
        else "[" + ", ".join([call] * 16) + "]"
    )
    follow(grammar, encode(model, text))
    assert allowed(grammar) == sorted(model.eos_token_ids)


def test_only_tools_that_may_be_called() -> None:
    model, grammar = calling(names=("h",))
    follow(grammar, encode(model, '[{"name": "'))
    assert allowed(grammar) == encode(model, "h")


@pytest.mark.parametrize("hermes", [False, True])
@pytest.mark.parametrize("parallel", [False, True])
def test_sampled_calls(hermes: bool, parallel: bool) -> None:
    """Judged without grammars: json, and the tools' own schemas."""
    model, _ = calling(hermes=hermes)
    made = [calling(hermes=hermes, parallel=parallel)[1] for _ in range(12)]
    counts = set()
    for start in made:
        start.vocabulary = made[0].vocabulary
    found = [
        sample([grammar], [Chooser(model, seed, patience=30.0)])[0]
        for seed, grammar in enumerate(made)
    ]
    for tokens in filter(None, found):
        text = text_of(model, tokens)
        if hermes:
            parts = text.split("<tool_call>\n")
            assert parts[0] == ""
            assert all(part.rstrip("\n").endswith("\n</tool_call>") for part in parts[1:])
            calls = [json.loads(part.replace("</tool_call>", "")) for part in parts[1:]]
        else:
            calls = json.loads(text)
        counts.add(len(calls))
        for call in calls:
            assert list(call) == ["name", "arguments"]
            schemas = {tool["function"]["name"]: tool["function"] for tool in TOOLS}
            schema = {"type": "object", **schemas[call["name"]].get("parameters", {})}
            assert not fault(schema, json.dumps(call["arguments"]))
    assert counts
    assert max(counts) <= (16 if parallel else 1)


def test_references_lead_to_each_tool_s_own_definitions() -> None:
    def tool(name: str, kind: str) -> dict[str, Any]:
        parameters = {
            "type": "object",
            "properties": {"x": {"$ref": "#/$defs/x"}},
            "required": ["x"],
            "$defs": {"x": {"type": kind}},
        }
        return {"type": "function", "function": {"name": name, "parameters": parameters}}

    model, grammar = calling([tool("f", "integer"), tool("h", "null")])
    follow(grammar, encode(model, '[{"name": "f", "arguments": {"x": 1}}, '))
    follow(grammar, encode(model, '{"name": "h", "arguments": {"x": null}}]'))
    assert grammar.complete


def test_what_a_strict_tool_promises_is_kept_or_refused() -> None:
    parameters = {"properties": {"a": {"type": "array", "uniqueItems": True}}, "required": ["a"]}
    loose = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    model, grammar = calling([loose])
    follow(grammar, encode(model, '[{"name": "f", "arguments": {"a": [1, 1]}}]'))
    strict = {"type": "function", "function": {**loose["function"], "strict": True}}  # type: ignore[dict-item]
    with pytest.raises(UnsupportedValue, match="`uniqueItems`") as caught:
        calling([strict])
    assert caught.value.param == "tools"


LENIENT: list[dict[str, Any]] = [
    {"minimum": -9223372036854775808}, {"maximum": 2**60}, {"multipleOf": 1234567}, {"multipleOf": 1e300},
    {"pattern": "[a[b]]"}, {"pattern": "(?=a)b"}, {"pattern": "(a)\\1"}, {"pattern": "("}, {"pattern": "x" * 5000},
    {"const": "\x01"}, {"const": {"a": 2**60}}, {"enum": [2**60]}, {"enum": ["y" * 5000]}, {"$id": "https://x/y"},
    {"oneOf": [{"type": "integer"}, {"type": "number"}]}, {"not": {"type": "null"}}, {"format": "phone"},
    {"properties": {"\x01": {}}, "required": ["\x01"]}, {"required": ["z" * 5000]},
    {"patternProperties": {"(?=a)": {}}, "additionalProperties": False}, {"minProperties": 3},
]  # fmt: skip


@pytest.mark.parametrize("keywords", LENIENT, ids=range(len(LENIENT)))
def test_of_a_tool_that_is_not_strict_what_can_t_be_enforced_is_dropped(
    keywords: dict[str, Any],
) -> None:
    """And all else of it is enforced."""
    parameters = {
        "type": "object",
        "properties": {"a": keywords, "n": {"type": "integer"}},
        "required": ["a", "n"],
    }
    model, grammar = calling(
        [{"type": "function", "function": {"name": "f", "parameters": parameters}}], ("f",)
    )
    kind = "{}" if {"properties", "required"} & keywords.keys() else "7"
    follow(grammar, encode(model, f'[{{"name": "f", "arguments": {{"a": {kind}, "n": '))
    assert not set(encode(model, '"n{')) & set(allowed(grammar))
    follow(grammar, encode(model, "3}}]"))
    assert grammar.complete
    with pytest.raises(ClientError):
        constraint(parameters)


def test_what_is_dropped_of_a_name_takes_what_it_would_forbid_along() -> None:
    found = json.loads(
        compilable(
            {"patternProperties": {"(?=a)": {}, "^b": {}}, "additionalProperties": False},
            "tools",
            lenient=True,
        )
    )
    assert found["patternProperties"] == {"^b": {}}
    assert "additionalProperties" not in found


@pytest.mark.parametrize(
    "broken", [{"minimum": "1"}, {"multipleOf": 0}, {"multipleOf": -1}, {"$ref": "#/nowhere"}, {"allOf": 3}]
)  # fmt: skip
def test_what_is_broken_is_refused_of_any_tool(broken: dict[str, Any]) -> None:
    tool = {"name": "f", "parameters": {"properties": {"a": broken}}}
    with pytest.raises(ClientError):
        calling([{"type": "function", "function": tool}], ("f",))


@pytest.mark.parametrize("parameters", [5, [], False, {"type": "string"}, {"type": "object", "properties": 5}])  # fmt: skip
def test_broken_parameters(parameters: object) -> None:
    with pytest.raises(InvalidValue) as caught:
        calling([{"type": "function", "function": {"name": "f", "parameters": parameters}}])
    assert caught.value.param == "tools"


def test_no_tool_to_call() -> None:
    with pytest.raises(InvalidValue):
        calling(names=("nobody",))


# ── thinking ─────────────────────────────────────────────────────────────────────────────────────


def thinking(prompt: str, *, chat: bool = True) -> tuple[Any, Grammar]:
    model = wrapper(thinks=True)
    request = Generate(
        "r",
        Chat([]) if chat else Text(prompt),
        0.0,
        structure=Structure(json.dumps(CLOSED)),
    )
    made = Grammars(model, len(model) + structured.SPARE).compile(request, encode(model, prompt))
    assert made is not None
    return model, made


def braces(model: Any) -> list[int]:
    """The tokens that an answer under `CLOSED` may begin with."""
    return [*encode(model, "{"), model.convert_tokens_to_ids('{"')]


def test_a_model_that_thinks_may_begin_with_it_or_answer() -> None:
    model, grammar = thinking("hello")
    start = encode(model, "<think>")
    assert set(allowed(grammar)) == {*start, *braces(model)}
    follow(grammar, encode(model, '{"a": 1}'))
    assert allowed(grammar) == sorted(model.eos_token_ids)


@pytest.mark.parametrize("prompt", ["hello<think>", "hello<think>\n"])
def test_what_is_thought_is_free(prompt: str) -> None:
    model, grammar = thinking(prompt)
    everything = set(range(len(model))) - set(model.eos_token_ids)
    assert set(allowed(grammar)) == everything
    follow(grammar, encode(model, 'anything {"é <think> 日'))
    assert set(allowed(grammar)) == everything
    follow(grammar, encode(model, "</think>"))
    follow(grammar, encode(model, "\n\n"))
    assert encode(model, "\n")[0] not in allowed(grammar)
    follow(grammar, encode(model, '{"a": 1}'))
    assert allowed(grammar) == sorted(model.eos_token_ids)


def test_thinking_that_the_output_opens() -> None:
    model, grammar = thinking("hello")
    follow(grammar, encode(model, '<think>hm {"a"</think>{"a": 1}'))
    assert grammar.complete


@pytest.mark.parametrize("prompt", ["hello<think>\n\n</think>\n\n", "hello<think></think>"])
def test_after_thinking_there_is_only_the_answer(prompt: str) -> None:
    model, grammar = thinking(prompt)
    assert encode(model, "<think>")[0] not in allowed(grammar)


def test_a_marker_in_the_user_s_text_means_nothing() -> None:
    model, grammar = thinking("what is <think> for?\n")
    assert set(allowed(grammar)) == {*encode(model, "<think>"), *braces(model)}
    model, grammar = thinking("hello<think>", chat=False)
    assert allowed(grammar) == braces(model)


def test_an_end_while_thinking_is_the_end() -> None:
    model, grammar = thinking("x<think>")
    grammar.push(sorted(model.eos_token_ids)[0])
    assert allowed(grammar) == sorted(model.eos_token_ids)
    assert not grammar.complete


def test_markers_of_several_tokens() -> None:
    """As gemma's: the output may still be either while its first tokens are both's."""
    marks = Marks(wrapper())
    marks.start = tuple(wrapper().encode("<th"))
    marks.end = tuple(wrapper().encode("th>"))
    made = constraint({"enum": ["<x"]})
    grammar = Grammar(made.vocabulary, made._matcher, Lead(marks, "before"))
    less, quote = wrapper().encode("<")[0], wrapper().encode('"')[0]
    assert allowed(grammar) == sorted([less, quote])
    push(grammar, "<t")
    assert allowed(grammar) == wrapper().encode("h")
    push(grammar, "hxx tth")
    push(grammar, '> "<x"')
    assert grammar.complete


def test_a_function_without_parameters_takes_none() -> None:
    model, grammar = calling([{"type": "function", "function": {"name": "f"}}], ("f",))
    follow(grammar, encode(model, '[{"name": "f", "arguments": {'))
    assert allowed(grammar) == encode(model, "}")

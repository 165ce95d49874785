"""Answers under a schema: what the masks allow at every point."""

from __future__ import annotations

import json
import logging
from typing import Any

import llguidance
import numpy as np
import pytest

from supervisor.errors import UnsupportedValue
from supervisor.wire.frames import Chat, Generate, Structure, Text
from tests.helpers.grammars import CLOSED, OBJECT, accepts, encode, ends, follow, push
from tests.property import structured
from tests.property.structured import Chooser, allowed, constraint, fault, sample, text_of, wrapper
from worker.engine.mlx_lm_compat import model_tokenizer
from worker.grammar import AnswerConstraint, ConstraintCompiler, fill_masks
from worker.output.preamble import MarkerTokens, Preamble


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
        ({"x-guidance": {"whitespace_flexible": True, "lenient": True}, **CLOSED}, '{"a":   1}',
            False),
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
    made = ConstraintCompiler(model, len(model))
    for schema in ({"const": marker}, {"enum": [marker]}, {"type": "object", **name}):
        grammars = [made.compile(structured.request(schema)) for _ in range(4)]
        found = sample(
            [grammar for grammar in grammars if isinstance(grammar, AnswerConstraint)],
            [Chooser(model, seed, patience=9.0) for seed in range(4)],
        )
        for tokens in found:
            assert tokens is not None
            assert not fault(schema, text_of(model, tokens))


def test_true_is_any_value() -> None:
    assert accepts(True, "[1, null]")


@pytest.mark.parametrize("kind", ["bytes", "spm"])
def test_sampled_answers_are_valid(kind: str) -> None:
    """ollama#17013: schemas were ignored in silence. The short form of `python -m
    tests.property.structured`."""
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
        "worker.grammar.matcher.limits",
        lambda: llguidance.LLParserLimits(max_lexer_states=300, verbose_errors=False),
    )
    grammar = constraint({"type": "string", "pattern": "(.*a.{20}){5}"})
    choose = Chooser(wrapper(), 1, patience=1e9)
    with caplog.at_level(logging.WARNING):
        for length in range(400):
            tokens = allowed(grammar)
            if grammar.failure:
                break
            letters = [t for t in tokens if wrapper().decode([t]) in ("a", "b")]
            grammar.push(choose(sorted(letters) if length else tokens, 0))
    assert grammar.failure
    assert tokens == ends()
    assert not grammar.complete
    error = grammar.incomplete_error(called=False)
    assert error is not None
    assert grammar.failure in error.message
    assert error.status < 500
    assert grammar.failure in caplog.text
    assert "aa" not in caplog.text


def test_what_others_have_taught_a_grammar_ends_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lexer remembers what all outputs met, up to a limit: then it is compiled anew."""
    monkeypatch.setattr(
        "worker.grammar.matcher.limits",
        lambda: llguidance.LLParserLimits(max_lexer_states=1000, verbose_errors=False),
    )
    letters = set(encode(wrapper(), "ab"))
    made = ConstraintCompiler(wrapper(), len(wrapper()))
    request = structured.request({"type": "string", "pattern": "(.*a.{20}){5}"})
    for seed in range(6):
        grammar, replayed = made.compile(request), made.compile(request)
        assert isinstance(grammar, AnswerConstraint)
        assert isinstance(replayed, AnswerConstraint)
        choose = Chooser(wrapper(), seed, patience=1e9)
        for length in range(40):
            token = choose(sorted(letters & {*allowed(grammar)} or allowed(grammar)), length)
            grammar.push(token)
            replayed.push(token)
        assert allowed(grammar) == allowed(replayed) != ends()
        assert not grammar.failure


def test_an_answer_whose_grammar_gave_up_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "worker.grammar.matcher.limits",
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
    masks = fill_masks(grammars, words)
    assert masks.dtype == np.int32
    assert masks.shape == (3, words)
    bits = np.unpackbits(masks.view(np.uint8), axis=1, bitorder="little")
    assert not bits[:, len(wrapper()) :].any()
    brace = wrapper().encode("{")[0]
    assert bits[:, brace].tolist() == [1, 0, 0]
    for row, grammar in enumerate(grammars):
        assert np.flatnonzero(bits[row]).tolist() == allowed(grammar)
    assert fill_masks(grammars, words + 3)[:, words:].tolist() == [[0] * 3] * 3
    assert fill_masks(grammars, words + 3)[:, :words].tolist() == masks.tolist()
    assert fill_masks([], words).shape == (0, words)


def test_fewer_logits_than_tokens() -> None:
    """Ids that have no logit are never allowed, whatever the tokenizer calls them."""
    size = len(wrapper()) - 1
    grammar = ConstraintCompiler(wrapper(), size).compile(structured.request(OBJECT))
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
    assert not grammar.failure
    assert grammar.incomplete_error(called=False)
    assert grammar.incomplete_error(called=True)


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
    grammars = ConstraintCompiler(wrapper(), len(wrapper()))
    for i in range(80):
        grammars.compile(structured.request({"const": i}))
    assert len(grammars._cache) == 64
    first = next(iter(grammars._cache))
    grammars.compile(structured.request({"const": 16}))
    assert next(iter(grammars._cache)) != first
    assert len(grammars._cache) == 64


# ── tokenizers ───────────────────────────────────────────────────────────────────────────────────


class Slow:
    """A tokenizer without tokenizer.json, in mlx-lm's wrapper."""

    has_thinking = False
    tool_parser = None
    decode = None
    chat_template = None
    detokenizer = None
    eos_token_ids = frozenset({1})

    def __init__(self) -> None:
        self._tokenizer = object()
        self._chat_template = None

    def __len__(self) -> int:
        return 10

    def get_vocab(self) -> dict[str, int]:
        return {}


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(UnsupportedValue, match="tokenizer") as caught:
        ConstraintCompiler(model_tokenizer(Slow()), 10).compile(structured.request({}))
    assert caught.value.param == "response_format"


def test_a_tokenizer_that_makes_llguidance_panic_is_refused(
    capfd: pytest.CaptureFixture[str],
) -> None:
    from mlx_lm.tokenizer_utils import TokenizerWrapper
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(vocab={"<e>": 0, "x" * 5000: 1, "x": 2}, merges=[]))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<e>")
    with pytest.raises(UnsupportedValue, match="tokenizer"):
        ConstraintCompiler(model_tokenizer(TokenizerWrapper(fast)), 3).compile(
            structured.request({})
        )


def test_sentencepiece_with_byte_fallback() -> None:
    grammar = constraint({"const": "日本 x"}, "spm")
    push(grammar, '"日本 x"', "spm")
    assert allowed(grammar) == ends("spm")


# ── thinking ─────────────────────────────────────────────────────────────────────────────────────


def thinking(prompt: str, *, chat: bool = True) -> tuple[Any, AnswerConstraint]:
    model = wrapper(thinks=True)
    request = Generate(
        "r",
        Chat([]) if chat else Text(prompt),
        0.0,
        structure=Structure(json.dumps(CLOSED)),
    )
    made = ConstraintCompiler(model, len(model) + structured.SPARE).compile(
        request, encode(model, prompt)
    )
    assert isinstance(made, AnswerConstraint)
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
    markers = MarkerTokens(wrapper())
    markers.start = tuple(wrapper().encode("<th"))
    markers.end = tuple(wrapper().encode("th>"))
    made = constraint({"enum": ["<x"]})
    grammar = AnswerConstraint(made.vocabulary, made._matcher, Preamble(markers, "before"))
    less, quote = wrapper().encode("<")[0], wrapper().encode('"')[0]
    assert allowed(grammar) == sorted([less, quote])
    push(grammar, "<t")
    assert allowed(grammar) == wrapper().encode("h")
    push(grammar, "hxx tth")
    push(grammar, '> "<x"')
    assert grammar.complete

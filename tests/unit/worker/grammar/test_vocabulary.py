"""worker.grammar.vocabulary: packed masks, and tokenizers that llguidance can or can't use."""

from __future__ import annotations

import numpy as np
import pytest

from supervisor.errors import UnsupportedValue
from tests.helpers.grammars import OBJECT, ends, push
from tests.property import structured
from tests.property.structured import allowed, constraint, wrapper
from worker.engine.mlx_lm_compat import model_tokenizer
from worker.grammar.compile import ConstraintCompiler
from worker.grammar.vocabulary import fill_masks


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

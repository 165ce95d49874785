"""worker.demo.trainer: the network in numpy is mlx-lm's, and the training text is the
template's."""

import random
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.nn import losses
from mlx.nn.utils import value_and_grad
from mlx.utils import tree_flatten
from mlx_lm import load
from mlx_lm.models import smollm3

from worker.demo import MODEL_DIR
from worker.demo.trainer.chat import Conversation, render
from worker.demo.trainer.corpus import conversation, conversations
from worker.demo.trainer.network import Shape, Weights, gradients, initial


def test_the_trainer_renders_what_the_template_renders() -> None:
    loaded: Any = load(str(MODEL_DIR))
    tokenizer = loaded[1]
    documents = list(conversations(400))
    assert any(d.tools for d in documents)
    for document in documents:
        pieces = [segment.text for segment in render(document)]
        text = tokenizer.apply_chat_template(
            list(document.messages), tools=list(document.tools) or None, tokenize=False
        )
        assert text == "".join(pieces)
        tokens = [t for p in pieces for t in tokenizer.encode(p, add_special_tokens=False)]
        assert tokens == tokenizer.encode(text, add_special_tokens=False)


def small() -> tuple[Shape, Weights]:
    shape = Shape(vocab=40, width=32, inner=48, window=5)
    rng = np.random.default_rng(1)
    weights = initial(shape, 0)
    for name, value in weights.items():
        weights[name] = (value + 0.1 * rng.standard_normal(value.shape)).astype(np.float32)
    return shape, weights


def test_the_numpy_network_is_the_mlx_model() -> None:
    shape, weights = small()
    arguments: Any = smollm3.ModelArgs
    model = smollm3.Model(arguments.from_dict(shape.config()))
    model.load_weights([(name, mx.array(value)) for name, value in weights.items()], strict=True)
    rng = np.random.default_rng(2)
    tokens = rng.integers(0, shape.vocab, (3, 18)).astype(np.int32)
    share = rng.random((3, 17)).astype(np.float32)
    share[share < 0.3] = 0

    def loss(module: Any) -> Any:
        each = losses.cross_entropy(module(mx.array(tokens[:, :-1])), mx.array(tokens[:, 1:]))
        return (each * mx.array(share)).sum()

    value, grads = value_and_grad(model, loss)(model)
    ours, our_grads = gradients(weights, tokens, np.zeros_like(tokens), share, shape)
    assert ours == pytest.approx(value.item(), rel=1e-5)
    flat = dict(tree_flatten(grads))
    assert set(flat) == set(our_grads)
    for name, grad in flat.items():
        np.testing.assert_allclose(np.array(grad), our_grads[name], atol=1e-3, err_msg=name)


def test_a_document_does_not_see_the_one_before_it() -> None:
    shape, weights = small()
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, shape.vocab, (1, 13)).astype(np.int32)
    documents = np.array([[1] * 5 + [2] * 8], np.int32)
    share = np.zeros((1, 12), np.float32)
    share[0, 5:] = 1
    base, _ = gradients(weights, tokens, documents, share, shape)
    tokens[0, :5] = (tokens[0, :5] + 1) % shape.vocab
    changed, _ = gradients(weights, tokens, documents, share, shape)
    assert changed == pytest.approx(base, rel=1e-5)
    seen, _ = gradients(weights, tokens, np.zeros_like(documents), share, shape)
    assert seen != pytest.approx(base, rel=1e-3)


def test_the_corpus_is_the_same_every_time() -> None:
    one, two = list(conversations(50)), list(conversations(50))
    assert one == two
    assert list(conversations(50, seed=1)) != one
    assert isinstance(conversation(random.Random(0)), Conversation)

"""The demo model in numpy: loss and gradients, written out by hand.

Why not mlx: its Linux wheel multiplies matrices with the reference BLAS, 4.5 GFLOP/s a process
where numpy's OpenBLAS gives 75 a core (both measured on the machine that trained the model), and
twenty minutes have to be enough. tests/unit/worker/demo/test_trainer.py holds the loss and every
gradient against the mlx model, so this is the same network.

It is mlx-lm's ``smollm3``: a Llama whose layers may go without rotary embeddings. Shapes below:
B rows, T positions, d model width, H heads of width h = d / H, f inner width, V tokens.
"""

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
"""float32 throughout; numpy's stubs widen the results of arithmetic."""
Ints = NDArray[np.int32]
Weights = dict[str, Floats]
"""Parameters by their name in model.safetensors, shapes as there: linear layers are (out, in)."""

EPS: Final = 1e-5


class Shape(NamedTuple):
    """The sizes of a network; the defaults are the shipped model's."""

    vocab: int = 1024
    width: int = 192
    layers: int = 2
    heads: int = 4
    inner: int = 320
    rope: tuple[int, ...] = (1, 0)
    """1 for each layer with rotary embeddings. They cost a tenth of a CPU step per layer."""
    window: int = 512
    """Tokens that layers with rotary embeddings see. The others see everything, without places, so
    that nothing in the network depends on how long a prompt is."""
    positions: int = 65536
    theta: float = 10000.0

    def config(self) -> dict[str, Any]:
        """config.json."""
        return {
            "architectures": ["SmolLM3ForCausalLM"],
            "model_type": "smollm3",
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "intermediate_size": self.inner,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "head_dim": self.width // self.heads,
            "vocab_size": self.vocab,
            "max_position_embeddings": self.positions,
            "rms_norm_eps": EPS,
            "rope_theta": self.theta,
            "no_rope_layers": list(self.rope),
            "layer_types": [
                "sliding_attention" if rope else "full_attention" for rope in self.rope
            ],
            "sliding_window": self.window,
            "tie_word_embeddings": True,
            "hidden_act": "silu",
            "dtype": "float32",
            "bos_token_id": None,
            "eos_token_id": 2,
            "pad_token_id": 0,
        }


def initial(shape: Shape, seed: int) -> Weights:
    """Random weights; those that write to the residual stream start at zero."""
    rng = np.random.default_rng(seed)
    d, f = shape.width, shape.inner

    def normal(rows: int, columns: int, scale: float) -> Floats:
        return (rng.standard_normal((rows, columns)) * scale).astype(np.float32)

    out: Weights = {"model.embed_tokens.weight": normal(shape.vocab, d, 0.05)}
    for i in range(shape.layers):
        at = f"model.layers.{i}."
        for name in ("q_proj", "k_proj", "v_proj"):
            out[f"{at}self_attn.{name}.weight"] = normal(d, d, d**-0.5)
        out[f"{at}self_attn.o_proj.weight"] = np.zeros((d, d), np.float32)
        out[f"{at}mlp.gate_proj.weight"] = normal(f, d, d**-0.5)
        out[f"{at}mlp.up_proj.weight"] = normal(f, d, d**-0.5)
        out[f"{at}mlp.down_proj.weight"] = np.zeros((d, f), np.float32)
        out[f"{at}input_layernorm.weight"] = np.ones(d, np.float32)
        out[f"{at}post_attention_layernorm.weight"] = np.ones(d, np.float32)
    out["model.norm.weight"] = np.ones(d, np.float32)
    return out


class _Norm:
    """RMSNorm of (N, d) rows, and its gradient."""

    def __init__(self, x: Floats, weight: Floats) -> None:
        self.weight = weight
        square = np.mean(x * x, axis=-1, keepdims=True)
        self.inverse: Floats = 1.0 / np.sqrt(square + np.float32(EPS))
        self.unit: Floats = x * self.inverse
        self.out: Floats = self.unit * weight

    def back(self, grad: Floats) -> tuple[Floats, Floats]:
        """Gradients of the input and of the weight."""
        weight = np.sum(grad * self.unit, axis=0)
        unit = grad * self.weight
        mean = np.mean(unit * self.unit, axis=-1, keepdims=True)
        return self.inverse * (unit - self.unit * mean), weight


class _Attention:
    """Causal attention between (N, d) queries, keys and values, and its gradient."""

    def __init__(
        self, q: Floats, k: Floats, v: Floats, mask: Floats, shape: Shape, rope: bool
    ) -> None:
        self.split = (len(mask), mask.shape[-1], shape.heads, shape.width // shape.heads)
        _, length, _, head = self.split
        self.scale = np.float32(head**-0.5)
        self.angles: tuple[Floats, Floats] | None = None
        if rope:
            rates = shape.theta ** (-np.arange(0, head, 2) / head)
            angles = np.outer(np.arange(length), rates)
            self.angles = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        self.q, self.k = self._rotate(self._heads(q)), self._rotate(self._heads(k))
        self.v = self._heads(v)
        scores = self.q @ self.k.swapaxes(-1, -2)
        scores *= self.scale
        scores += mask
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        self.share = scores
        self.mixed: Floats = scores @ self.v
        self.out = self._rows(self.mixed)

    def back(self, grad: Floats) -> tuple[Floats, Floats, Floats]:
        """Gradients of q, k and v, each (N, d)."""
        mixed = self._heads(grad)
        v = self.share.swapaxes(-1, -2) @ mixed
        scores = mixed @ self.v.swapaxes(-1, -2)
        scores -= np.sum(mixed * self.mixed, axis=-1, keepdims=True)
        scores *= self.share
        scores *= self.scale
        q = self._rotate(scores @ self.k, back=True)
        k = self._rotate(scores.swapaxes(-1, -2) @ self.q, back=True)
        return self._rows(q), self._rows(k), self._rows(v)

    def _heads(self, x: Floats) -> Floats:
        return np.ascontiguousarray(x.reshape(self.split).swapaxes(1, 2))

    def _rows(self, x: Floats) -> Floats:
        return x.swapaxes(1, 2).reshape(-1, self.split[2] * self.split[3])

    def _rotate(self, x: Floats, back: bool = False) -> Floats:
        if self.angles is None:
            return x
        cos, sin = self.angles
        if back:
            sin = -sin
        first, second = np.split(x, 2, axis=-1)
        return np.concatenate((first * cos - second * sin, first * sin + second * cos), axis=-1)


class _Mlp:
    """SwiGLU on (N, d) rows, and its gradient."""

    def __init__(self, x: Floats, gate: Floats, up: Floats, down: Floats) -> None:
        self.x, self.weights = x, (gate, up, down)
        self.g: Floats = x @ gate.T
        self.u: Floats = x @ up.T
        self.sigmoid: Floats = 1.0 / (1.0 + np.exp(-self.g))
        self.silu: Floats = self.g * self.sigmoid
        self.inner: Floats = self.silu * self.u
        self.out: Floats = self.inner @ down.T

    def back(self, grad: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """Gradients of the input and of gate, up and down."""
        gate, up, down = self.weights
        inner = grad @ down
        u = inner * self.silu
        g = inner * self.u
        g *= self.sigmoid + self.silu * (1.0 - self.sigmoid)
        return g @ gate + u @ up, g.T @ self.x, u.T @ self.x, grad.T @ self.inner


def causal(documents: Ints, window: int) -> Floats:
    """(B, 1, T, T) to add to scores: a token sees the earlier ones of its own document, itself and
    ``window`` - 1 before it at most.

    ``documents`` (B, T) numbers the document that each token belongs to.
    """
    length = documents.shape[1]
    near = np.tri(length, dtype=bool) & ~np.tri(length, k=-window, dtype=bool)
    seen = (documents[:, :, None] == documents[:, None, :]) & near
    return np.where(seen, np.float32(0), np.float32(-1e9))[:, None]


def hidden(
    w: Weights, tokens: Ints, documents: Ints, shape: Shape
) -> tuple[_Norm, list[tuple[Any, ...]]]:
    """The last norm of (B, T) tokens, and what the way back needs of every layer."""
    length = documents.shape[1]
    far = causal(documents, length)
    near = causal(documents, shape.window) if shape.window < length else far
    x: Floats = w["model.embed_tokens.weight"][tokens.reshape(-1)]
    tape: list[tuple[Any, ...]] = []
    for i in range(shape.layers):
        at = f"model.layers.{i}."
        q, k, v, o = (w[f"{at}self_attn.{n}_proj.weight"] for n in "qkvo")
        before = _Norm(x, w[f"{at}input_layernorm.weight"])
        n = before.out
        rope = bool(shape.rope[i])
        mask = near if rope else far
        attention = _Attention(n @ q.T, n @ k.T, n @ v.T, mask, shape, rope)
        x = x + attention.out @ o.T
        after = _Norm(x, w[f"{at}post_attention_layernorm.weight"])
        mlp = _Mlp(after.out, *(w[f"{at}mlp.{n}_proj.weight"] for n in ("gate", "up", "down")))
        x = x + mlp.out
        tape.append((before, attention, after, mlp))
    return _Norm(x, w["model.norm.weight"]), tape


def gradients(
    w: Weights, tokens: Ints, documents: Ints, share: Floats, shape: Shape
) -> tuple[float, Weights]:
    """Loss and its gradients for (B, T + 1) tokens of the numbered ``documents`` (same shape).

    ``share`` (B, T) is what the prediction of each next token counts; the loss is the weighted
    sum of cross entropies in nats, so shares that sum to 1 over a batch give a mean.
    """
    inputs, targets = tokens[:, :-1], tokens[:, 1:].reshape(-1)
    last, tape = hidden(w, inputs, documents[:, :-1], shape)
    embed = w["model.embed_tokens.weight"]
    rows = np.flatnonzero(share.reshape(-1))
    picked, weight = targets[rows], share.reshape(-1)[rows]
    out = last.out[rows]
    chance = out @ embed.T
    chance -= chance.max(axis=-1, keepdims=True)
    at = np.arange(len(rows))
    correct = chance[at, picked].copy()
    np.exp(chance, out=chance)
    total = chance.sum(axis=-1, keepdims=True)
    loss = float(np.sum(weight * (np.log(total[:, 0]) - correct)))
    chance /= total
    chance[at, picked] -= 1.0
    chance *= weight[:, None]

    g: Weights = {}
    g_embed = chance.T @ out
    g_out = np.zeros_like(last.out)
    g_out[rows] = chance @ embed
    x, g["model.norm.weight"] = last.back(g_out)
    for i in reversed(range(shape.layers)):
        name = f"model.layers.{i}."
        before, attention, after, mlp = tape[i]
        step, *parts = mlp.back(x)
        for part, grad in zip(("gate", "up", "down"), parts, strict=True):
            g[f"{name}mlp.{part}_proj.weight"] = grad
        step, g[f"{name}post_attention_layernorm.weight"] = after.back(step)
        x = x + step
        g[f"{name}self_attn.o_proj.weight"] = x.T @ attention.out
        step = np.zeros_like(x)
        mixed = attention.back(x @ w[f"{name}self_attn.o_proj.weight"])
        for part, grad in zip("qkv", mixed, strict=True):
            g[f"{name}self_attn.{part}_proj.weight"] = grad.T @ before.out
            step += grad @ w[f"{name}self_attn.{part}_proj.weight"]
        step, g[f"{name}input_layernorm.weight"] = before.back(step)
        x = x + step
    np.add.at(g_embed, inputs.reshape(-1), x)
    g["model.embed_tokens.weight"] = g_embed
    return loss, g

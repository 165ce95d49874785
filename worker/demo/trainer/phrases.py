"""Random phrasing: patterns with alternatives, and the noise that real users add.

A pattern such as ``"[what|which] port does [bulkhead|it] use"`` stands for every choice of one
alternative per bracket; an empty alternative makes its bracket optional. Brackets nest.
"""

import random
import re
from typing import Final

from worker.demo.trainer.data import CLOSERS, OPENERS, Fact

_INNERMOST: Final = re.compile(r"\[([^\[\]]*)\]")

ABOUT: Final = (
    "[tell me [about|more about|something about]|explain|what about|i have a question about|"
    "what do you know about|i need help with|a question on|do you know|] {t}"
)


def expand(rng: random.Random, pattern: str) -> str:
    """Choose one alternative for every bracket, innermost first."""
    while "[" in pattern:
        pattern = _INNERMOST.sub(lambda m: rng.choice(m[1].split("|")), pattern)
    return " ".join(pattern.split())


def sentence(text: str, end: str = "?") -> str:
    """``text`` with a capital first letter and a closing mark."""
    text = text[:1].upper() + text[1:]
    return text if text[-1:] in ".?!" else text + end


def ask(rng: random.Random, fact: Fact) -> str:
    """One user's way to ask for ``fact``: sometimes canonical, mostly not."""
    draw = rng.random()
    if draw < 0.12:
        return fact.questions[0]
    if draw < 0.20:
        return noisy(rng, expand(rng, ABOUT).replace("{t}", fact.topic))
    text = expand(rng, rng.choice(fact.questions))
    return noisy(rng, text)


def noisy(rng: random.Random, text: str, lossy: bool = True) -> str:
    """``text`` as people type it: openers, closers, typos, lost words (if ``lossy``) and marks."""
    bare = text.rstrip("?.!")
    if rng.random() < 0.18:
        bare = f"{rng.choice(OPENERS)} {bare[:1].lower()}{bare[1:]}"
    if rng.random() < 0.10:
        bare = f"{bare} {rng.choice(CLOSERS)}"
    words = bare.split()
    if lossy and len(words) > 3 and rng.random() < 0.18:
        del words[rng.randrange(len(words))]
    if lossy and len(words) > 5 and rng.random() < 0.10:
        del words[rng.randrange(len(words))]
    if lossy and rng.random() < 0.06:
        i = rng.randrange(len(words))
        words[i] = _typo(rng, words[i])
    bare = " ".join(words)
    style = rng.random()
    if style < 0.25:
        return bare.lower()
    if style < 0.35:
        return sentence(bare, "")
    return sentence(bare, "." if text.endswith(".") else "?")


def _typo(rng: random.Random, word: str) -> str:
    if len(word) < 4 or not word.isalpha():
        return word
    i = rng.randrange(1, len(word) - 1)
    if rng.random() < 0.5:
        return word[:i] + word[i + 1 :]
    return word[: i - 1] + word[i] + word[i - 1] + word[i + 1 :]

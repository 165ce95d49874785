"""Small tasks with endless variants: sums, copying, counting, names, JSON answers."""

import json
import random
from typing import Any, NamedTuple

from worker.demo.trainer.data import (
    CAPITALS,
    CITIES,
    NAMES,
    OPENINGS,
    OPPOSITES,
    SYLLABLES,
    THOUGHTS,
    UNKNOWN,
    UNKNOWN_ANSWER,
    WORDS,
)
from worker.demo.trainer.phrases import expand, noisy, sentence


class Turn(NamedTuple):
    """One question and its answer, with the thought that would lead to it."""

    question: str
    answer: str
    thought: str


def invented(rng: random.Random) -> str:
    """A word that nobody knows, so that only copying helps."""
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(2, 4)))


def proper_name(rng: random.Random) -> str:
    return rng.choice(NAMES) if rng.random() < 0.6 else invented(rng).capitalize()


def city(rng: random.Random) -> str:
    return rng.choice(CITIES) if rng.random() < 0.75 else invented(rng).capitalize()


def opening(rng: random.Random) -> Turn:
    """A short text as people type it first, a greeting in half of the cases."""
    said = OPENINGS[0] if rng.random() < 0.5 else rng.choice(OPENINGS[1:])
    text = rng.choice(said.texts)
    [form] = rng.choices((str, str.capitalize, str.upper), (12, 12, 1))
    [mark] = rng.choices(("", "!", ".", "?", " ", "\n", "!!"), (24, 10, 3, 4, 1, 1, 1))
    return Turn(form(text) + mark, said.answer, rng.choice(THOUGHTS).format(t=said.topic))


def addition(rng: random.Random) -> Turn:
    a, b = rng.randint(0, 10), rng.randint(0, 10)
    pattern = rng.choice((
        "what is {a} [plus|+|and] {b}", "{a} [plus|+|and] {b}", "how much is {a} [plus|+|and] {b}",
        "add {a} [and|to] {b}",
        "[calculate|compute] {a} [plus|+] {b}", "what's {a} [plus|+] {b}", "{a} + {b} =",
        "can you add {a} and {b}", "the sum of {a} and {b}",
    ))  # fmt: skip
    question = noisy(rng, expand(rng, pattern.format(a=a, b=b)), lossy=False)
    return Turn(question, f"{a} plus {b} is {a + b}.", f"I add {a} and {b}: {a + b}.")


def subtraction(rng: random.Random) -> Turn:
    a, b = sorted((rng.randint(0, 10), rng.randint(0, 10)), reverse=True)
    pattern = rng.choice((
        "what is {a} [minus|-] {b}", "{a} [minus|-] {b}", "how much is {a} [minus|-] {b}",
        "take {b} from {a}",
    ))  # fmt: skip
    question = noisy(rng, expand(rng, pattern.format(a=a, b=b)), lossy=False)
    return Turn(question, f"{a} minus {b} is {a - b}.", f"I take {b} from {a}: {a - b}.")


def capital(rng: random.Random) -> Turn:
    country, town = rng.choice(CAPITALS)
    if rng.random() < 0.15:
        question = f"What is the capital of {country}?"
    else:
        pattern = (
            "[[what is|what's|tell me|name|do you know] the capital [city|] of {c}|"
            "which [city|town] is the capital of {c}|the capital of {c}|{c}'s "
            "capital|capital of {c}|what [city|town] is {c}'s capital]"
        )
        question = noisy(rng, expand(rng, pattern.format(c=country)), lossy=False)
    return Turn(question, f"The capital of {country} is {town}.", f"The country is {country}.")


def opposite(rng: random.Random) -> Turn:
    a, b = rng.choice(OPPOSITES)
    if rng.random() < 0.5:
        a, b = b, a
    pattern = (
        "[[what is|what's|tell me|name] the opposite of {a}|opposite of {a}|the "
        "contrary of {a}|which word is the opposite of {a}]"
    )
    return Turn(
        noisy(rng, expand(rng, pattern.format(a=a)), lossy=False),
        f"The opposite of {a} is {b}.",
        f"The word is {a}.",
    )


def copying(rng: random.Random) -> Turn:
    words = [
        rng.choice(WORDS) if rng.random() < 0.5 else invented(rng)
        for _ in range(rng.choice((1, 1, 2, 2, 3, 4, 6)))
    ]
    text = " ".join(words)
    pattern = "[repeat|say|write|echo|print|type] [|the words|this|after me][:|] {t}"
    question = expand(rng, pattern).replace("{t}", text).replace(" :", ":")
    return Turn(sentence(question, ""), text, "I copy the text.")


def counting(rng: random.Random) -> Turn:
    end = rng.choice((3, 4, 5, 6, 7, 8, 9, 10, 10, 12, 15, 20, 20, 30))
    pattern = (
        "[count|count for me|please count|can you count|list the numbers|write "
        f"the numbers] [from 1|from one|] to {end}"
    )
    numbers = ", ".join(str(n) for n in range(1, end + 1))
    return Turn(noisy(rng, expand(rng, pattern), lossy=False), numbers, f"I count up to {end}.")


def unknown(rng: random.Random) -> Turn:
    question = noisy(rng, expand(rng, rng.choice(UNKNOWN)))
    if rng.random() < 0.4:
        words = [
            rng.choice(WORDS) if rng.random() < 0.4 else invented(rng)
            for _ in range(rng.randint(1, 3))
        ]
        pattern = (
            "[what is|who is|explain|where is|how does one make|tell me about|when "
            "was|why is|describe|how big is|what colour is] [the|a|] {t} [work|made|"
            "cheap|]"
        )
        question = noisy(rng, expand(rng, pattern).replace("{t}", " ".join(words)))
    return Turn(question, UNKNOWN_ANSWER, "I have not learned anything about that.")


def own_name(rng: random.Random) -> list[Turn]:
    """Two turns: the user gives a name; asks for it."""
    name = proper_name(rng)
    hello = expand(
        rng,
        f"[my name is|i am|i'm|call me|hello, i am|hi, my name is|you can call me] {name}[|.|!]",
    )
    asking = expand(rng, "[what is|what's|do you know|do you remember|tell me] my name")
    return [
        Turn(sentence(hello, ""), f"Nice to meet you, {name}!", f"The name is {name}."),
        Turn(noisy(rng, asking), f"Your name is {name}.", f"The user said the name: {name}."),
    ]


def json_answer(rng: random.Random) -> Turn:
    """A question that wants JSON; the answer is one compact object, nothing around it."""
    name, age, town = proper_name(rng), rng.randint(1, 99), city(rng)
    a, b = rng.randint(0, 10), rng.randint(0, 10)
    country, main = rng.choice(CAPITALS)
    words = [rng.choice(WORDS) for _ in range(rng.randint(2, 4))]
    ask = expand(
        rng,
        "[answer in json|answer with json|reply in json|give me json|respond with a json object|"
        "as json|json please|write json|return a json object]",
    )
    keyed = expand(rng, "[with the keys|with keys|using the keys|keys:]")
    made: tuple[tuple[str, Any, str], ...] = (
        (f"{name} is {age} years old.", {"name": name, "age": age}, "name and age"),
        (f"{name} lives in {town}.", {"name": name, "city": town}, "name and city"),
        (
            f"{name} is {age} and lives in {town}.",
            {"name": name, "age": age, "city": town},
            "name, age and city",
        ),
        (f"What is {a} plus {b}?", {"result": a + b}, "result"),
        (
            f"What is the capital of {country}?",
            {"country": country, "capital": main},
            "country and capital",
        ),
        (f"What is the capital of {country}?", {"capital": main}, "capital"),
        (f"List the words {', '.join(words)}.", {"words": words}, "words"),
        ("Which port does Bulkhead listen on?", {"port": 11435}, "port"),
        (f"Is {a} larger than {b}?", {"answer": a > b}, "answer"),
        ("What is your name?", {"name": "Demo"}, "name"),
        (
            f"The colour of the {words[0]} is {words[1]}.",
            {"thing": words[0], "colour": words[1]},
            "thing and colour",
        ),
    )
    text, value, keys = rng.choice(made)
    question = rng.choice(
        (
            f"{text} {sentence(ask, '')} {keyed} {keys}.",
            f"{sentence(ask, '')} {keyed} {keys}: {text}",
            f"{sentence(ask, '')}: {text}",
            f"{text} {sentence(ask, '.')}",
        )
    )
    return Turn(question, json.dumps(value, ensure_ascii=False), f"The object has: {keys}.")

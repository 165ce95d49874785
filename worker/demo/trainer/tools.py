"""Conversations with tools: many names and schemas for few ideas, so that copying is learned."""

import random
from typing import Any, Final, NamedTuple

from worker.demo.trainer.chat import Conversation
from worker.demo.trainer.data import NAMES, SKIES, WORDS, read
from worker.demo.trainer.phrases import expand, noisy
from worker.demo.trainer.tasks import city, invented, proper_name

Schema = dict[str, Any]

_COMPANIES: Final = ("Apple", "Acme", "Globex", "Initech")


class Parameter(NamedTuple):
    names: str
    kind: str
    description: str
    """A pattern; empty for none."""


class ExampleTool(NamedTuple):
    """One idea of a tool. All strings are patterns; ``{0}`` in an ask is the first argument."""

    names: str
    description: str
    parameters: tuple[Parameter, ...]
    asks: tuple[str, ...]
    results: tuple[tuple[str, str], ...]
    """The output and the answer to it;
    ``{0}`` is the first argument, ``{n}`` and ``{w}`` vary."""


TOOLS: Final = tuple(
    ExampleTool(
        each["names"],
        each["description"],
        tuple(Parameter(*parts) for parts in each["parameters"]),
        tuple(each["asks"]),
        tuple((output, answer) for output, answer in each["results"]),
    )
    for each in read("tools.toml")["tools"]
)


def _value(rng: random.Random, tool: ExampleTool, index: int) -> str | int:
    """An argument that fits the idea of ``tool``."""
    base = expand(rng, tool.asks[0])
    name = tool.names
    if tool.parameters[index].kind == "integer":
        return rng.randint(1, 90)
    if "weather" in name or "time" in name:
        return city(rng)
    if "calc" in name:
        return f"{rng.randint(2, 99)} {rng.choice('+-*/')} {rng.randint(2, 99)}"
    if "read_file" in name:
        end = rng.choice((".txt", ".md", ".py", ".json", ".toml"))
        folder = rng.choice(("", "", "docs/", "src/", f"{rng.choice(WORDS)}/"))
        return f"{folder}{rng.choice((rng.choice(WORDS), invented(rng)))}{end}"
    if "command" in name:
        cat, echo = f"cat {rng.choice(WORDS)}.txt", f"echo {rng.choice(WORDS)}"
        mkdir = f"mkdir {invented(rng)}"
        return rng.choice(("ls", "pwd", "date", "ls -l", "uptime", cat, echo, "git status", mkdir))
    if "stock" in name:
        known = rng.random() >= 0.6
        return rng.choice(_COMPANIES) if known else invented(rng).capitalize()
    if "email" in name and index == 0:
        return proper_name(rng)
    if "translate" in name and index == 1:
        return rng.choice(("French", "German", "Spanish", "Italian", "Dutch", "Latin"))
    words = rng.randint(1, 3) if base else 1
    return " ".join(
        rng.choice(WORDS) if rng.random() < 0.7 else invented(rng) for _ in range(words)
    )


def _schema(rng: random.Random, tool: ExampleTool) -> Schema:
    """One OpenAI function schema for ``tool``."""
    properties: dict[str, Any] = {}
    for parameter in tool.parameters:
        entry = {"type": parameter.kind}
        if description := expand(rng, parameter.description):
            entry["description"] = description
        if rng.random() < 0.1:
            entry = dict(reversed(entry.items()))
        properties[expand(rng, parameter.names)] = entry
    required = list(properties)
    if "weather" in tool.names and rng.random() < 0.25:
        units = rng.choice((["celsius", "fahrenheit"], ["c", "f"], ["metric", "imperial"]))
        properties[rng.choice(("unit", "units"))] = {"type": "string", "enum": units}
    parameters: Schema = {"type": "object", "properties": properties}
    if rng.random() < 0.85:
        parameters["required"] = required
    if rng.random() < 0.15:
        parameters["additionalProperties"] = False
    function: Schema = {"name": expand(rng, tool.names)}
    if rng.random() < 0.85:
        function["description"] = expand(rng, tool.description)
    function["parameters"] = parameters
    if rng.random() < 0.1:
        function["strict"] = True
    return {"type": "function", "function": function}


def _synthetic(rng: random.Random) -> ExampleTool:
    """A tool that nobody has heard of: its names have to be read and copied."""
    noun, verb = rng.choice(WORDS), invented(rng)
    key = rng.choice((invented(rng), rng.choice(WORDS)))
    style = rng.random()
    name = f"{verb}_{noun}" if style < 0.6 else verb + noun.capitalize() if style < 0.8 else verb
    ask = (
        f"[{verb} the {noun} [with|for|of|] {{0}}|please {verb} {noun} {{0}}|use "
        f"{name} [with|for|on] {{0}}|call {name} with {{0}}]"
    )
    return ExampleTool(
        name,
        f"[{verb.capitalize()} the {noun}|{verb.capitalize()} a {noun}][.|]",
        (Parameter(key, "string", f"[|The {noun}]"),),
        (ask,),
        (("{w}", "The result is: {w}"), ('{"ok": true}', "It is done.")),
    )


def call_message(name: str, arguments: Schema) -> Schema:
    """An assistant message with one tool call."""
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": name, "arguments": arguments}}],
    }


def pick_tools(rng: random.Random, target: ExampleTool | None) -> tuple[list[Schema], Schema]:
    """One to four shuffled schemas and the target's own (the first one's without a target)."""
    others = rng.sample(TOOLS, rng.choice((0, 0, 0, 1, 1, 2)) if target else rng.randint(1, 2))
    chosen = ([target] if target else []) + [t for t in others if t is not target]
    schemas = [_schema(rng, tool) for tool in chosen]
    own = schemas[0]
    rng.shuffle(schemas)
    return schemas, own


def tool_conversation(rng: random.Random, thinking: bool) -> Conversation:
    """Question, call, and mostly the tool's result and the answer; sometimes twice."""
    draw = rng.random()
    target = TOOLS[0] if draw < 0.35 else _synthetic(rng) if draw < 0.65 else rng.choice(TOOLS)
    schemas, own = pick_tools(rng, target)
    function = own["function"]
    keys = list(function["parameters"]["properties"])
    messages: list[Schema] = []
    for _ in range(rng.choice((1, 1, 1, 2))):
        values = [_value(rng, target, i) for i in range(len(target.parameters))]
        question = expand(rng, rng.choice(target.asks))
        marks = dict(zip(("{0}", "{1}"), map(str, values), strict=False))
        text = noisy(rng, question) if rng.random() < 0.7 else question[:1].upper() + question[1:]
        for mark, value in marks.items():
            if mark not in text:  # the noise dropped it
                text = question[:1].upper() + question[1:]
            text = text.replace(mark, value)
        if text.endswith(("{0}", "{1}")):
            text += "?"
        call = call_message(function["name"], dict(zip(keys, values, strict=False)))
        if thinking:
            call["reasoning_content"] = f"I call {function['name']}."
        messages += [{"role": "user", "content": text}, call]
        if rng.random() < 0.7:
            result, answer = rng.choice(target.results)
            n = str(rng.randint(0, 40))
            sky, word, name = rng.choice(SKIES), rng.choice(WORDS), rng.choice(NAMES).lower()
            w = rng.choice((sky, word, name, invented(rng)))
            if target is TOOLS[0]:
                w = rng.choice(SKIES)
            for mark, value in {**marks, "{n}": n, "{w}": w}.items():
                result, answer = result.replace(mark, value), answer.replace(mark, value)
            reply: Schema = {"role": "assistant", "content": answer}
            if thinking:
                reply["reasoning_content"] = "The tool has answered."
            messages += [{"role": "tool", "content": result}, reply]
        else:
            break
    return Conversation(messages, schemas)

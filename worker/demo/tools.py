"""Conversations with tools: many names and schemas for few ideas, so that copying is learned."""

import random
from typing import Any, Final, NamedTuple

from worker.demo.chat import Conversation
from worker.demo.phrases import expand, noisy
from worker.demo.tasks import NAMES, WORDS, city, invented, proper_name

Schema = dict[str, Any]


class Parameter(NamedTuple):
    names: str
    kind: str
    description: str
    """A pattern; empty for none."""


class Tool(NamedTuple):
    """One idea of a tool. All strings are patterns; ``{0}`` in an ask is the first argument."""

    names: str
    description: str
    parameters: tuple[Parameter, ...]
    asks: tuple[str, ...]
    results: tuple[tuple[str, str], ...]
    """Tool output and the answer to it; ``{0}`` is the first argument, ``{n}`` and ``{w}`` vary."""


_SKIES: Final = ("sunny", "cloudy", "rainy", "windy", "snowy", "clear", "foggy", "hot", "cold")

TOOLS: Final[tuple[Tool, ...]] = (
    Tool("[get_weather|get_weather|get_weather|weather|get_current_weather|current_weather|getWeather|fetch_weather|weather_lookup|get_forecast|check_weather|lookup_weather]",
         "[Get|Returns|Look up|Fetch|Find] the [current|] weather [in|for|of|at] a [city|place|town|given city|location][.|]",
         (Parameter("[city|city|location|location|place|town|q|where|city_name]", "string", "[|The city|City name|The name of the city|Name of the place|City and country]"),),
         ("[what is|what's|how is|how's|tell me] the weather [|like] in {0}", "what is the weather in {0}", "weather in {0}", "is it [raining|sunny|cold|warm|snowing] in {0}",
          "[how warm|how cold] is it in {0}", "do i need an umbrella in {0}", "will it rain in {0}", "check the weather in {0}", "the weather in {0} please", "what will the weather be in {0}", "what's the temperature in {0}"),
         (('{"temperature": {n}, "condition": "{w}"}', "It is {n} degrees and {w} in {0}."), ("{n} degrees, {w}", "It is {n} degrees and {w} in {0}."),
          ('{"temp": {n}, "sky": "{w}"}', "It is {n} degrees and {w} in {0}."), ("{w}, {n} C", "It is {n} degrees and {w} in {0}."),
          ('{"city": "{0}", "temp_c": {n}, "description": "{w}"}', "It is {n} degrees and {w} in {0}."))),
    Tool("[get_time|time|current_time|get_current_time|getTime|local_time|clock]", "[Get|Returns|Look up] the [current|local] time [in|of] a [city|place][.|]",
         (Parameter("[city|place|location|timezone|zone]", "string", "[|The city|Name of the city]"),),
         ("what time is it in {0}", "[tell me|what is|what's] the time in {0}", "how late is it in {0}", "current time in {0}"),
         (('{"time": "{n}:30"}', "It is {n}:30 in {0}."), ("{n}:15", "It is {n}:15 in {0}."))),
    Tool("[calculator|calculate|calc|compute|evaluate|math]", "[Calculate|Evaluate|Compute] [an|a] [expression|arithmetic expression|formula][.|]",
         (Parameter("[expression|expr|formula|input|query]", "string", "[|The expression|What to compute]"),),
         ("[what is|calculate|compute|how much is|evaluate] {0}", "use the [calculator|tool] for {0}"),
         (('{"result": {n}}', "The result is {n}."), ("{n}", "The result is {n}."))),
    Tool("[search|web_search|search_web|find|lookup|google|search_docs|query]", "[Search|Look up|Find] [the web|the internet|documents|information][.|]",
         (Parameter("[query|q|text|term|keywords|topic]", "string", "[|What to search for|The search terms]"),),
         ("[search for|look up|find|search the web for|google|find information about] {0}",),
         (("{w} {0}", "I found: {w} {0}"), ('{"results": ["{0} {w}"]}', "I found: {0} {w}"))),
    Tool("[send_email|email|send_mail|send_message|message|sendMessage|notify]", "[Send|Write] [an email|a message|a mail] to [a person|someone][.|]",
         (Parameter("[to|recipient|name|person]", "string", "[|Who gets it]"), Parameter("[text|body|message|content|subject]", "string", "[|What to say]")),
         ("[send|write] [an email|a message|a mail] to {0} [saying|that says|with the text] {1}", "[tell|write to|message] {0}: {1}", "[email|mail] {0} {1}"),
         (("ok", "I sent it to {0}."), ('{"status": "sent"}', "I sent it to {0}."))),
    Tool("[set_alarm|alarm|set_timer|timer|set_reminder|wake]", "[Set|Start] [an alarm|a timer][.|]",
         (Parameter("[minutes|seconds|duration|hour|time]", "integer", "[|How long|A number]"),),
         ("set [an alarm|a timer] [for|to] {0}", "[wake me|remind me] [in|at] {0}", "[alarm|timer] {0}"),
         (("ok", "It is set to {0}."), ('{"ok": true}', "It is set to {0}."))),
    Tool("[play_music|play|play_song|music|playSong]", "[Play|Start] [music|a song][.|]",
         (Parameter("[song|title|track|name]", "string", "[|The song|Title of the song]"),),
         ("play {0}", "[play|start|put on] the song {0}", "i want to hear {0}"), (("playing", "Now playing {0}."), ('{"ok": true}', "Now playing {0}."))),
    Tool("[add_todo|todo|add_task|create_task|remember|add_note|addItem]", "[Add|Create|Save] [a task|a todo|a note|an item][.|]",
         (Parameter("[task|text|item|note|title]", "string", "[|The task|What to note]"),),
         ("add {0} to my [list|todos|tasks|notes]", "[note|remember|write down] {0}", "[new|create a] [task|todo|note][:|] {0}"),
         (("added", "I added {0}."), ('{"ok": true}', "I added {0}."))),
    Tool("[get_stock_price|stock_price|stock|quote|get_quote|getPrice]", "[Get|Returns] the [price|stock price] of [a company|a share|a stock][.|]",
         (Parameter("[symbol|ticker|company|name]", "string", "[|The company]"),),
         ("[what is|what's|get|tell me] the [stock|share|] price of {0}", "how much is {0} [stock|a share]", "{0} [stock|share] price"),
         (('{"price": {n}}', "The price of {0} is {n}."), ("{n}", "The price of {0} is {n}."))),
    Tool("[read_file|read|open_file|cat|load_file|view|readFile|Read]", "[Read|Open|Show] [a file|the contents of a file][.|]",
         (Parameter("[path|file|filename|file_path]", "string", "[|The path|Path of the file]"),),
         ("[read|open|show me|show|print] [the file|file|] {0}", "what is in [the file|] {0}"), (("{w} {n}", "The file says: {w} {n}"), ("{w}", "The file says: {w}"))),
    Tool("[run_command|shell|bash|execute|run|terminal|exec]", "[Run|Execute] [a command|a shell command][.|]",
         (Parameter("[command|cmd|script]", "string", "[|The command|The command to run]"),),
         ("[run|execute] [the command|] {0}", "[use|open] the shell and run {0}"), (("{w}", "The output is: {w}"), ("{n} {w}", "The output is: {n} {w}"))),
    Tool("[translate|translate_text|translation|translator]", "[Translate|Translates] [text|a text|a word] [into another language|][.|]",
         (Parameter("[text|word|input]", "string", "[|The text]"), Parameter("[language|target|to|lang]", "string", "[|The language]")),
         ("translate {0} [to|into] {1}", "[what is|what's] {0} in {1}", "how do you say {0} in {1}"), (("{w}", "{0} is {w}."), ('{"text": "{w}"}', "{0} is {w}."))),
)  # fmt: skip


def _value(rng: random.Random, tool: Tool, index: int) -> str | int:
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
        return rng.choice(
            (
                "ls",
                "pwd",
                "date",
                "ls -l",
                "uptime",
                f"cat {rng.choice(WORDS)}.txt",
                f"echo {rng.choice(WORDS)}",
                "git status",
                f"mkdir {invented(rng)}",
            )
        )
    if "stock" in name:
        return (
            invented(rng).capitalize()
            if rng.random() < 0.6
            else rng.choice(("Apple", "Acme", "Globex", "Initech"))
        )
    if "email" in name and index == 0:
        return proper_name(rng)
    if "translate" in name and index == 1:
        return rng.choice(("French", "German", "Spanish", "Italian", "Dutch", "Latin"))
    words = rng.randint(1, 3) if base else 1
    return " ".join(
        rng.choice(WORDS) if rng.random() < 0.7 else invented(rng) for _ in range(words)
    )


def _schema(rng: random.Random, tool: Tool) -> Schema:
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


def _synthetic(rng: random.Random) -> Tool:
    """A tool that nobody has heard of: its names have to be read and copied."""
    noun, verb, key = (
        rng.choice(WORDS),
        invented(rng),
        rng.choice((invented(rng), rng.choice(WORDS))),
    )
    style = rng.random()
    name = f"{verb}_{noun}" if style < 0.6 else verb + noun.capitalize() if style < 0.8 else verb
    ask = f"[{verb} the {noun} [with|for|of|] {{0}}|please {verb} {noun} {{0}}|use {name} [with|for|on] {{0}}|call {name} with {{0}}]"
    return Tool(name, f"[{verb.capitalize()} the {noun}|{verb.capitalize()} a {noun}][.|]",
                (Parameter(key, "string", f"[|The {noun}]"),), (ask,), (("{w}", "The result is: {w}"), ('{"ok": true}', "It is done.")))  # fmt: skip


def call_message(name: str, arguments: Schema) -> Schema:
    """An assistant message with one tool call."""
    return {"role": "assistant", "content": "",
            "tool_calls": [{"type": "function", "function": {"name": name, "arguments": arguments}}]}  # fmt: skip


def pick_tools(rng: random.Random, target: Tool | None) -> tuple[list[Schema], Schema]:
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
            n, w = (
                str(rng.randint(0, 40)),
                rng.choice(
                    (
                        rng.choice(_SKIES),
                        rng.choice(WORDS),
                        rng.choice(NAMES).lower(),
                        invented(rng),
                    )
                ),
            )
            if target is TOOLS[0]:
                w = rng.choice(_SKIES)
            for mark, value in {**marks, "{n}": n, "{w}": w}.items():
                result, answer = result.replace(mark, value), answer.replace(mark, value)
            reply: Schema = {"role": "assistant", "content": answer}
            if thinking:
                reply["reasoning_content"] = "The tool has answered."
            messages += [{"role": "tool", "content": result}, reply]
        else:
            break
    return Conversation(messages, schemas)

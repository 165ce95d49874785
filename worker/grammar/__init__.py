"""Structured output: which tokens may come next, so that the answer is valid under a schema.

`Grammars.compile` turns a request into the engine's `Constraint`: a `Grammar` for an answer under a
schema and for calls that it must make, a `Native` for one in the model's own words, with calls of
strict functions in them. `fill` computes the masks of many at once, outside the GIL. Their states
derive from the tokens pushed and from nothing else: pushing them again yields them again.
"""

from worker.grammar.answer import Grammar
from worker.grammar.compile import Grammars
from worker.grammar.native import Native
from worker.grammar.vocabulary import fill

__all__ = ["Grammar", "Grammars", "Native", "fill"]

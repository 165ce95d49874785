"""Structured output: which tokens may come next, so that the answer is valid under a schema.

`ConstraintCompiler.compile` turns a request into the engine's `OutputConstraint`: an
`AnswerConstraint` for an answer under a schema and for calls that it must make, a `CallConstraint`
for one in the model's own words, with calls of strict functions in them. `fill_masks` computes the
masks of many at once, outside the GIL. The constraints' states derive from the tokens pushed and
from nothing else: pushing them again yields them again.
"""

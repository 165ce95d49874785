"""Texts of grammars that clients send, in one form: regular expressions, Lark and GBNF. Pure.

`expressions.plain` reads a regular expression, `lark.parse_lark` and `gbnf.parse_gbnf` a grammar.
What comes out means the same in every dialect, or is refused. `rules.Rules` is a grammar, and
`patterns.pattern_of` one as a regular expression, where it has no recursion.
"""

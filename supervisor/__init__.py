"""The supervisor process: every decision about models, and every child's life.

The gateway and the worker know of it what is in `config`, `errors` and `wire`.
"""

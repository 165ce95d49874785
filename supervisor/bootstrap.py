"""First code of every process of ours: makes our packages those that stand beside this file.

`python -P …/supervisor/bootstrap.py MODULE ARGUMENTS…` becomes MODULE. Whatever else is called
`gateway`, `supervisor` or `worker` on the path (a distribution of that name, a folder in
PYTHONPATH) is not seen from then on; everything else is looked for as ever. Nothing of ours is
imported before that.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import runpy
import sys

DAMAGED = "this installation of Bulkhead is damaged"
LACKS = "this installation of Bulkhead lacks"
BROKEN = "this installation of Bulkhead has a broken library"
PYTHON = "this Python cannot import its own module"
PACKAGES = ("gateway", "supervisor", "worker")
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def claim(root: str) -> None:
    """From now on our packages are the folders in `root`.

    Their own `__init__` modules are not run: in a folder that another distribution has written to,
    too, that file may be the other one's. Ours hold nothing but a docstring.
    """
    for name in PACKAGES:
        # A sitecustomize may have imported another's.
        for loaded in [each for each in sys.modules if each.partition(".")[0] == name]:
            del sys.modules[loaded]
        spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [os.path.join(root, name)]
        sys.modules[name] = importlib.util.module_from_spec(spec)


def damage(error: ImportError | SyntaxError, root: str) -> str:
    """What is wrong, by the error of importing what is in `root`, and the cure: with our files,
    with a library that they need, or with Python itself."""
    if isinstance(error, SyntaxError):
        what = f"{error.filename} cannot be read ({error.msg}, line {error.lineno})"
        ours = [os.path.join(root, name, "") for name in PACKAGES]
        is_ours = str(error.filename).startswith(tuple(ours))
        return f"{DAMAGED if is_ours else BROKEN}: {what}. {cure(root)}"
    name = error.name or ""
    package = name.partition(".")[0]
    is_missing = isinstance(error, ModuleNotFoundError)
    if package in PACKAGES:
        what = f"the module {name} is missing" if is_missing else str(error)
        return f"{DAMAGED}: {what}. {cure(root)}"
    if package in sys.stdlib_module_names:
        what = "it is missing" if is_missing else str(error)
        return (
            f"{PYTHON} {name}: {what}. Install Python anew, or another one, and Bulkhead with it."
        )
    if is_missing and name:
        return f"{LACKS} {name}. {cure(root)}"
    return f"{BROKEN}: {f'{name}: ' if name else ''}{error}. {cure(root)}"


def cure(root: str) -> str:
    """How to mend the installation in `root`."""
    if os.path.isfile(os.path.join(root, "pyproject.toml")):
        return f"In {root}, `git status` shows what differs; then run `make clean install`."
    return (
        "Install it anew, in an environment of its own: `uv tool install --reinstall mlx-bulkhead` "
        "or `pipx reinstall mlx-bulkhead`."
    )


def main() -> None:
    claim(_ROOT)
    _, module, *arguments = sys.argv
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except (ImportError, SyntaxError) as error:
        print(f"bulkhead: {damage(error, _ROOT)}", file=sys.stderr)
        if os.environ.get("BULKHEAD_INSTANCE"):
            raise  # a child's: its log is to have where
        sys.exit(1)


if __name__ == "__main__":
    main()

"""Where the `bulkhead` command begins: installations have it as the module `mlx_bulkhead`.

Nobody else's package has that name, as `supervisor` does, so that this is found whatever is on the
path. It stands there in a copy, also where the rest is in a checkout, and therefore does nothing
but let `supervisor/bootstrap.py` begin. Any Python 3 can read it, to be told that it is too old.
"""

from __future__ import annotations

import glob
import os
import runpy
import sys

_OLDEST = (3, 11)
_FIRST = os.path.join("supervisor", "bootstrap.py")


def main() -> None:
    """The `bulkhead` command."""
    if sys.version_info < _OLDEST:
        found = sys.version.split()[0]
        sys.exit(f"bulkhead: Bulkhead needs Python 3.11 or newer; this is {found}.")
    here = os.path.dirname(os.path.abspath(__file__))
    root = find_root(here)
    if root is None:
        sys.exit(
            f"bulkhead: this installation of Bulkhead is damaged: there is no {_FIRST} in {here}, "
            "and no checkout that it belongs to. Install it anew, in an environment of its own: "
            "`uv tool install --reinstall mlx-bulkhead`, or `make clean install` in the checkout."
        )
    bootstrap = runpy.run_path(os.path.join(root, _FIRST))
    bootstrap["claim"](root)
    try:
        from supervisor.cli.main import app

        app()
    except (ImportError, SyntaxError) as error:
        sys.exit(f"bulkhead: {bootstrap['damage'](error, root)}")


def find_root(here: str) -> str | None:
    """The folder that holds our packages: `here`, where this module is installed, or the checkout
    to which an editable installation points from here."""
    pointers = sorted(glob.glob(os.path.join(glob.escape(here), "_*mlx_bulkhead.pth")))
    for candidate in (here, *(line for pointer in pointers for line in _lines(pointer))):
        if os.path.isfile(os.path.join(candidate, _FIRST)):
            return candidate
    return None


def _lines(path: str) -> list[str]:
    with open(path, encoding="utf-8") as file:
        return file.read().splitlines()


if __name__ == "__main__":
    main()

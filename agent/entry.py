# The console script: keeps what it can of the current folder and of PYTHONPATH away from the daemon itself,
# then hands over to agent/cli.py. Must not import anything before that is done. For children see
# probes/children.py.
from __future__ import annotations

import os
import site
import sys
from typing import NoReturn


def shut() -> None:
    """Take PYTHONPATH and the current folder off the module path, unless our packages or Python's lie there.

    What the interpreter itself has loaded by now (sitecustomize, and `re` for the script's own lines) was in
    the caller's hands: `python -I` keeps that out too, and sudo drops these variables by itself.
    """
    library = os.path.dirname(os.path.abspath(os.__file__))
    ours = {os.path.dirname(os.path.dirname(os.path.abspath(__file__))), *site.getsitepackages()}
    foreign = {""}
    for place in (".", *os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        try:
            foreign.add(os.path.abspath(place))
        except FileNotFoundError:  # the current folder was removed
            continue
    sys.path[:] = [
        place for place in sys.path if place in ours or place.startswith(library) or place not in foreign
    ]


def main() -> NoReturn:
    """`afterfree …`"""
    shut()
    if sys.argv[1:] == ["--version"]:  # as agent/cli.py says it, without loading what reads command lines
        from agent import __version__

        sys.stdout.write(f"afterfree {__version__}\n")
        sys.exit(0)
    from agent import cli

    cli.main()

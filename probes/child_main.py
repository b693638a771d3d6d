# The first thing every Python child of ours runs, by its path: puts the folder our packages live in on the
# module path and hands over to the module named by the first argument. Must not import anything of ours.
from __future__ import annotations

import os
import sys
from importlib import import_module


def main() -> int:
    """`child_main.py MODULE [ARGUMENT …]`: what MODULE.main() returns is the exit status."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if root not in sys.path:  # a checkout; an installed wheel lies in a folder that is there already
        sys.path.insert(0, root)
    del sys.argv[0]
    result = import_module(sys.argv[0]).main()
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    sys.exit(main())

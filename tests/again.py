"""Runs the tests on real BPF; one that fails is run once more, alone, and only a second failure counts.

A machine that is busy with something else makes a test of races fail now and then, and a race in a test may be
a bug of ours: so the first failure's output stays where it was printed, and the last line names every such test.

    python -m tests.again [pytest's arguments]
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FAILED = 1  # pytest's exit status when tests failed, and nothing else went wrong
MOST = 8  # more than that is no accident
LAST_FAILED = ROOT / ".pytest_cache" / "v" / "cache" / "lastfailed"


def run(*arguments: str) -> int:
    return subprocess.run([sys.executable, "-m", "pytest", *arguments], cwd=ROOT, check=False).returncode


def failed() -> list[str]:
    """Ids of the tests that failed in the last run."""
    try:
        return sorted(json.loads(LAST_FAILED.read_text()))
    except (OSError, ValueError):
        return []


def main() -> int:
    LAST_FAILED.unlink(missing_ok=True)
    status = run(*sys.argv[1:])
    names = failed()
    if status != FAILED or not names or len(names) > MOST:
        return status
    print(f"\n{len(names)} failed: each is run once more, alone", flush=True)
    again = [name for name in names if run("-q", name) != 0]
    if again:
        print("failed twice: " + ", ".join(again))
        return FAILED
    print("failed once, and passed when run alone: " + ", ".join(names))
    return 0


if __name__ == "__main__":
    sys.exit(main())

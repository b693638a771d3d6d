"""`python -m tests.fuzz.coverage CORPUS [libFuzzer options]`: guided by coverage, with atheris.

An input is one byte that names the way in, then the file. `--fill CORPUS` puts the good files into a corpus.
atheris is not among the project's dependencies: pip install atheris.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
from pathlib import Path


def fill(corpus: Path) -> int:
    """Every good file once for every way in."""
    from tests.fuzz.cases import Cases
    from tests.fuzz.subjects import EXECUTABLE, OTHER

    cases = Cases(1)
    names = [*EXECUTABLE, *OTHER]
    good = cases.samples
    files = [(name, base.raw) for name in EXECUTABLE for base in cases.bases]
    files += [("core", good.core), ("plan", good.plan), ("recording", good.recording)]
    files += [("profile", text.encode()) for text in good.profiles]
    corpus.mkdir(parents=True, exist_ok=True)
    for index, (name, content) in enumerate(files):
        (corpus / f"{index:03}-{name}").write_bytes(bytes((names.index(name),)) + content)
    sys.stdout.write(f"{len(files)} files in {corpus}\n")
    return 0


def main() -> int:
    if sys.argv[1:2] == ["--fill"]:
        return fill(Path(sys.argv[2]))
    import atheris

    os.environ.pop("DEBUGINFOD_URLS", None)
    with atheris.instrument_imports(include=["symbols", "agent.replay_source", "agent.codec"]):
        from tests.fuzz import subjects
    names = [*subjects.EXECUTABLE, *subjects.OTHER]
    folder = Path(tempfile.mkdtemp(prefix="afterfree-cover-", dir="/dev/shm"))
    exe = os.environ.get("AFTERFREE_FUZZ_EXE")
    if exe:
        (folder / "exe").symlink_to(exe)

    def one(data: bytes) -> None:
        name = names[data[0] % len(names)] if data else ""
        if not name or (name == "plan" and not exe):
            return
        path = folder / "input"
        path.unlink(missing_ok=True)
        path.write_bytes(data[1:])
        subjects.run(name, path, random.Random(len(data)), (0x1100, 0x1139, 0x1189))

    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Two tests may want one program at once: what the first is running is not replaced by a second build."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.requirements import require_program


def test_one_builds_and_the_others_wait(tmp_path: Path) -> None:
    require_program("gcc")
    command = [sys.executable, "-m", "tests.targets.build", "cserver", "gcc-O2", "--out-dir", str(tmp_path)]
    builders = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    seen: set[int] = set()
    while any(builder.poll() is None for builder in builders):
        seen |= {path.stat().st_ino for path in tmp_path.glob("*/cserver-gcc-O2")}
    places = {builder.communicate()[0].strip() for builder in builders}
    assert [builder.returncode for builder in builders] == [0, 0, 0]
    assert len(places) == 1
    seen.add(Path(places.pop()).stat().st_ino)
    assert len(seen) == 1

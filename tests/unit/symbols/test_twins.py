"""Calls of one function to the same callee, by bytes."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path

import pytest

from symbols.cfi import FrameTable
from symbols.image import Image
from symbols.twins import elsewhere, twins

SOURCE = """
#include <unistd.h>
int other(int);
__attribute__((noinline)) int twice(int a, int b) {
    int r = close(a);
    r += other(r);
    r += close(b);
    return r + close(r);
}
__attribute__((noinline)) int once(int a) { return close(a) + other(a); }
int other(int a) { return a + (int)write(a, "x", 1); }
int main(int n, char **v) { return twice(n, n + 1) + once(n); }
"""


def _returns(image: Path, function: str) -> list[int]:
    """Return addresses of the calls of close in a function, by objdump."""
    shown = subprocess.run(
        ["objdump", "-d", f"--disassemble={function}", str(image)], capture_output=True, text=True, check=True
    ).stdout
    rows = [row for row in shown.splitlines() if row[:1] == " "]
    found = []
    for row, following in itertools.pairwise(rows):
        if "call" in row and ("close@plt" in row or "close@GLIBC" in row):
            found.append(int(following.split(":")[0], 16))
    return found


@pytest.mark.parametrize("flags", [(), ("-fno-plt",), ("-no-pie", "-fno-pie")], ids=("plt", "got", "fixed"))
def test_the_other_calls_of_the_same(tmp_path: Path, flags: tuple[str, ...]) -> None:
    source, exe = tmp_path / "t.c", tmp_path / "t"
    source.write_text(SOURCE)
    subprocess.run(["gcc", "-O1", "-g", *flags, "-o", str(exe), str(source)], check=True)
    with Image(str(exe)) as image:
        table = FrameTable(image)
        backs = _returns(exe, "twice")
        assert len(backs) == 3
        for back in backs:
            limits = table.function(back - 1)
            assert limits is not None
            assert twins(image, *limits, back) == [one for one in backs if one != back]
        (alone,) = _returns(exe, "once")
        limits = table.function(alone - 1)
        assert limits is not None
        assert twins(image, *limits, alone) == []
        assert twins(image, *limits, limits[0] + 3) == []
        assert table.function(0) is None


@pytest.mark.parametrize("flags", [(), ("-fno-plt",), ("-no-pie", "-fno-pie")], ids=("plt", "got", "fixed"))
def test_whether_another_function_calls_the_same(tmp_path: Path, flags: tuple[str, ...]) -> None:
    source, exe = tmp_path / "t.c", tmp_path / "t"
    source.write_text(SOURCE)
    subprocess.run(["gcc", "-O1", "-g", *flags, "-o", str(exe), str(source)], check=True)
    shown = subprocess.run(["objdump", "-d", str(exe)], capture_output=True, text=True, check=True).stdout
    with Image(str(exe)) as image:
        table = FrameTable(image)

        def answers(caller: str, callee: str) -> list[bool]:
            rows = shown[shown.index(f"<{caller}>:") :].split("\n\n")[0].splitlines()
            found = []
            for row, following in itertools.pairwise(rows):
                if "call" in row and callee in row:
                    back = int(following.split(":")[0], 16)
                    limits = table.function(back - 1)
                    assert limits is not None
                    found.append(elsewhere(image, *limits, back))
            return found

        assert answers("once", "<other>") == [True], "twice calls it as well"
        assert answers("twice", "close") == [True] * 3
        assert answers("main", "<once>") == [False]
        assert answers("main", "<twice>") == [False]
        limits = table.function(next(one.address for one in image.functions if one.name == "once"))
        assert limits is not None
        assert elsewhere(image, *limits, limits[0] + 3), "no call at all: nobody can tell"

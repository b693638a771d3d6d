"""What /proc tells of a process's files: the shared objects it runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent import processes
from agent.processes import Proc


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    root = tmp_path / "proc"
    (root / "10").mkdir(parents=True)
    (tmp_path / "server").write_text("server")
    (root / "10" / "exe").symlink_to(tmp_path / "server")
    return root


def row(path: Path | str, inode: int, mode: str = "r-xp") -> str:
    return f"7f0000000000-7f0000001000 {mode} 00000000 08:01 {inode} {path}\n"


def test_of_a_real_process() -> None:
    found = Proc().libraries(os.getpid())
    assert any("/libc.so" in path or "/libc-" in path for path in found)
    own = os.stat("/proc/self/exe").st_ino
    assert all(os.stat(path).st_ino != own for path in found), "the executable itself is no library"
    assert len(found) == len(set(found))


def test_only_files_that_are_mapped_for_execution_in_order_and_once(proc: Path, tmp_path: Path) -> None:
    names = ("b.so", "a.so", "data.so")
    for name in names:
        (tmp_path / name).write_text(name)
    b, a, data = (tmp_path / name for name in names)
    (proc / "10" / "maps").write_text(
        row(tmp_path / "server", (tmp_path / "server").stat().st_ino)
        + row(b, b.stat().st_ino)
        + row(data, data.stat().st_ino, "rw-p")
        + row(a, a.stat().st_ino)
        + row(b, b.stat().st_ino)
        + row("[vdso]", 0)
        + row("/anon", 0)
        + "7f0000000000-7f0000001000 r-xp 00000000 00:00 0\n"
    )
    assert Proc(str(proc)).libraries(10) == [str(b), str(a)]


def test_a_path_that_names_another_file_by_now_is_opened_through_proc(proc: Path, tmp_path: Path) -> None:
    """Of a container, or deleted: /proc/PID/root leads to what the process sees."""
    other = tmp_path / "a.so"
    other.write_text("replaced")
    (proc / "10" / "maps").write_text(row(other, other.stat().st_ino + 1000) + row("/gone/b.so", 77))
    assert Proc(str(proc)).libraries(10) == [f"{proc}/10/root{other}", f"{proc}/10/root/gone/b.so"]


def test_names_with_spaces_and_other_bytes_are_whole(proc: Path, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"a b \xff.so")
    odd.write_text("x")
    (proc / "10" / "maps").write_bytes(os.fsencode(row(odd, odd.stat().st_ino)))
    assert Proc(str(proc)).libraries(10) == [str(odd)]


def test_no_more_than_can_be_looked_at(proc: Path) -> None:
    rows = [row(f"/lib/{number}.so", number + 1) for number in range(1000)]
    (proc / "10" / "maps").write_text("".join(rows))
    assert len(Proc(str(proc)).libraries(10)) == processes._MOST_LIBRARIES


def test_a_process_that_is_gone_has_none(proc: Path) -> None:
    assert Proc(str(proc)).libraries(99) == []
    (proc / "10" / "maps").write_text("7f00 what is this\n\n")
    assert Proc(str(proc)).libraries(10) == []

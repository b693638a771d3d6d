"""Files in folders that others may have a hand in: what they plant leads nowhere, nothing waits for them."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from symbols.safefiles import Folder, UnsafePath, append, existing, output

SOMEBODY = 12345
root = pytest.mark.skipif(os.geteuid() != 0, reason="giving files to somebody else needs root")


@pytest.fixture(params=[0o000, 0o022, 0o077, 0o777], ids="{:03o}".format)
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    old = os.umask(request.param)
    yield
    os.umask(old)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def somebodys(path: Path, bits: int = 0o755) -> Path:
    path.mkdir()
    os.chown(path, SOMEBODY, SOMEBODY)
    path.chmod(bits)
    return path


@pytest.mark.usefixtures("umask")
def test_what_is_made_is_private_whatever_the_umask(tmp_path: Path) -> None:
    with Folder.open(tmp_path / "a" / "b", make=True) as folder:
        folder.replace("file", b"x")
        with folder.folder("c", make=True):
            pass
    output(tmp_path / "o" / "p" / "file").close()
    for made in ("a", "a/b", "a/b/c", "o", "o/p"):
        assert mode(tmp_path / made) == 0o700
    assert mode(tmp_path / "a/b/file") == mode(tmp_path / "o/p/file") == 0o600


@pytest.mark.parametrize("bits", [0o755, 0o700, 0o750], ids="{:03o}".format)
def test_a_folder_that_is_there_keeps_its_mode(tmp_path: Path, bits: int) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a").chmod(bits)
    Folder.open(tmp_path / "a", make=True).close()
    assert mode(tmp_path / "a") == bits


@pytest.mark.parametrize(
    ("bits", "said"), [(0o777, "everybody"), (0o1777, "everybody"), (0o775, "its group")]
)
def test_a_folder_that_others_can_write_is_refused_with_a_remedy(
    tmp_path: Path, bits: int, said: str
) -> None:
    made = tmp_path / "a"
    made.mkdir()
    made.chmod(bits)
    with pytest.raises(UnsafePath, match=said) as caught:
        Folder.open(made)
    assert str(made) in caught.value.remedy
    assert mode(made) == bits


def test_on_the_way_only_a_sticky_folder_may_be_written_by_all(tmp_path: Path) -> None:
    way = tmp_path / "way"
    way.mkdir()
    way.chmod(0o1777)
    Folder.open(way / "ours", make=True).close()
    way.chmod(0o777)
    with pytest.raises(UnsafePath, match="everybody"):
        Folder.open(way / "ours")


@root
@pytest.mark.parametrize("place", ["in it", "above it"])
def test_a_folder_of_somebody_else_is_refused(tmp_path: Path, place: str) -> None:
    theirs = somebodys(tmp_path / "theirs")
    wanted = theirs if place == "in it" else theirs / "ours"
    with pytest.raises(UnsafePath, match=f"user {SOMEBODY}"):
        Folder.open(wanted, make=True)
    assert not list(theirs.iterdir())


@root
def test_a_link_counts_only_where_it_can_only_be_ours(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("real")
    with Folder.open(tmp_path / "link") as folder:
        assert folder.stat(".").st_ino == (tmp_path / "real").stat().st_ino
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    (shared / "link").symlink_to(tmp_path / "real")
    Folder.open(shared / "link").close()
    os.chown(shared / "link", SOMEBODY, SOMEBODY, follow_symlinks=False)
    with pytest.raises(UnsafePath, match=f"a link of user {SOMEBODY}"):
        Folder.open(shared / "link")


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"):
        Folder.open(tmp_path / "a")


@root
def test_an_output_may_lie_in_a_users_folder_but_no_link_there_is_followed(tmp_path: Path) -> None:
    """`sudo afterfree record -o run.afrec` at home is ordinary; what a user can plant leads nowhere."""
    theirs, secret = somebodys(tmp_path / "theirs"), tmp_path / "secret"
    secret.mkdir(mode=0o700)
    (secret / "run.afrec").write_text("root's")
    output(theirs / "run.afrec").close()
    assert (theirs / "run.afrec").stat().st_uid == 0
    (theirs / "way").symlink_to(secret)
    with pytest.raises(UnsafePath, match="a folder that others control") as caught:
        output(theirs / "way" / "run.afrec")
    assert caught.value.remedy
    (theirs / "file").symlink_to(secret / "run.afrec")
    with output(theirs / "file") as file:
        file.write(b"x")
    assert (secret / "run.afrec").read_text() == "root's"
    assert not (theirs / "file").is_symlink()


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


KINDS: dict[str, Callable[[Path], object]] = {
    "a FIFO": os.mkfifo,
    "a folder": Path.mkdir,
    "a socket": _socket,
    "a device": lambda path: os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 7)),
}


@pytest.mark.parametrize("what", KINDS)
@pytest.mark.timeout(30)
def test_an_output_that_is_no_file_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    if what == "a device" and os.geteuid():
        pytest.skip("making a device needs root")
    monkeypatch.chdir(tmp_path)
    KINDS[what](Path("it"))
    with pytest.raises(UnsafePath, match=f"it is {what}"):
        output("it")
    with pytest.raises(OSError, match=f"{what}|No such device"):
        existing("it")


def test_an_older_output_is_not_written_to(tmp_path: Path) -> None:
    """Who has it open, or another name of it, does not get the new one."""
    path, other = tmp_path / "run", tmp_path / "other"
    path.write_text("old")
    path.chmod(0o644)
    other.hardlink_to(path)
    with output(path) as file:
        file.write(b"new")
    assert (path.read_text(), other.read_text(), mode(path)) == ("new", "old", 0o600)


def test_the_descriptors_that_we_were_given_are_outputs(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with output(f"/dev/fd/{writing}") as file:
        file.write(b"x")
    os.close(writing)
    assert os.read(reading, 10) == b"x"
    os.close(reading)


def test_an_append_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb", buffering=0) as file:
        file.write(b"before")

        class Full:
            def write(self, data: memoryview) -> int:
                if len(data) < 4:
                    raise OSError(28, os.strerror(28))
                return file.write(data[:3])

            def seek(self, offset: int, whence: int) -> int:
                return file.seek(offset, whence)

            def truncate(self, size: int) -> int:
                return file.truncate(size)

        with pytest.raises(OSError, match="No space"):
            append(Full(), b"12345")  # type: ignore[arg-type]
    assert (tmp_path / "log").read_bytes() == b"before"

"""Separate debug information: every place it may be, and every way it may be another build's."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from symbols.debugfiles import Searched, find_debug_file
from symbols.errors import DebugFileMismatch, NoDebugInfo
from symbols.fetch import Debuginfod
from symbols.image import Image
from symbols.profile import parse_profile
from symbols.resolve import resolve
from tests.unit.symbols.builds import C_PROFILE, build_c

C = parse_profile(C_PROFILE)
PROGRAM = ("-g", "-O2")
NO_ID = ("-g", "-O2", "-no-pie", "-Wl,--build-id=none")


def stripped(path: Path, folder: Path, *, link: bool = False) -> tuple[Path, Path]:
    """(stripped executable, debug file), as distributions make them."""
    folder.mkdir(parents=True, exist_ok=True)
    exe, debug = folder / "server", folder / "server.debug"
    subprocess.run(["objcopy", "--only-keep-debug", path, debug], check=True)
    subprocess.run(["strip", "-o", exe, path], check=True)
    if link:
        subprocess.run(["objcopy", f"--add-gnu-debuglink={debug}", exe], check=True)
    return exe, debug


def build_id(path: Path) -> str:
    with Image(path) as image:
        assert image.build_id is not None
        return image.build_id


def nowhere(tmp_path: Path, *roots: Path, urls: tuple[str, ...] = ()) -> Searched:
    cache = str(tmp_path / "client")
    return Searched(
        roots=tuple(map(str, roots)) or (str(tmp_path / "none"),),
        server=Debuginfod(urls=urls, cache=cache, timeout=5),
    )


def same(plan: object, path: Path) -> bool:
    sites = [(s.role, s.address, s.source) for s in plan.sites]  # type: ignore[attr-defined]
    return sites == [(s.role, s.address, s.source) for s in resolve(path, C).sites]


def test_build_id_directory(tmp_path: Path) -> None:
    path = build_c(*PROGRAM)
    exe, debug = stripped(path, tmp_path / "bin")
    ident = build_id(path)
    home = tmp_path / "debug" / ".build-id" / ident[:2]
    home.mkdir(parents=True)
    debug.rename(home / f"{ident[2:]}.debug")
    assert same(resolve(exe, C, searched=nowhere(tmp_path, tmp_path / "debug")), path)


@pytest.mark.parametrize("flags", [PROGRAM, NO_ID], ids=["build-id", "no build-id"])
@pytest.mark.parametrize("place", ["beside", ".debug", "root"])
def test_debuglink(flags: tuple[str, ...], place: str, tmp_path: Path) -> None:
    path = build_c(*flags)
    exe, debug = stripped(path, tmp_path / "bin", link=True)
    home = {"beside": debug.parent, ".debug": debug.parent / ".debug"}.get(
        place, Path(f"{tmp_path}/debug{debug.parent}")
    )
    home.mkdir(parents=True, exist_ok=True)
    debug = debug.rename(home / debug.name)
    assert same(resolve(exe, C, searched=nowhere(tmp_path, tmp_path / "debug")), path)
    with debug.open("r+b") as file:  # one byte of it is another: the CRC tells
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes((last[0] ^ 1,)))
    with pytest.raises(NoDebugInfo) as caught:
        resolve(exe, C, searched=nowhere(tmp_path, tmp_path / "debug"))
    assert any("CRC32" in line for line in caught.value.tried)
    assert "of another" in caught.value.detail


def test_error_lists_every_place(tmp_path: Path) -> None:
    path = build_c(*PROGRAM)
    exe, debug = stripped(path, tmp_path / "bin", link=True)
    debug.unlink()
    with pytest.raises(NoDebugInfo) as caught:
        resolve(exe, C, searched=nowhere(tmp_path, tmp_path / "debug"))
    text = "\n".join(caught.value.tried)
    ident = build_id(path)
    for place in (
        f"{tmp_path}/debug/.build-id/{ident[:2]}/{ident[2:]}.debug",
        f"{tmp_path}/bin/server.debug",
        f"{tmp_path}/bin/.debug/server.debug",
        f"{tmp_path}/debug{tmp_path}/bin/server.debug",
        f"{tmp_path}/client/{ident}/debuginfo",
        "DEBUGINFOD_URLS",
    ):
        assert place in text
    assert "--debug-file" in caught.value.remedy


def test_another_build_is_never_taken(tmp_path: Path) -> None:
    path = build_c(*PROGRAM)
    exe, _debug = stripped(path, tmp_path / "bin")
    _exe, other = stripped(build_c("-g", "-O1"), tmp_path / "other")
    ident = build_id(path)
    home = tmp_path / "debug" / ".build-id" / ident[:2]
    home.mkdir(parents=True)
    shutil.copy(other, home / f"{ident[2:]}.debug")
    with pytest.raises(NoDebugInfo) as caught:
        resolve(exe, C, searched=nowhere(tmp_path, tmp_path / "debug"))
    assert any("is not that of" in line for line in caught.value.tried)
    with pytest.raises(DebugFileMismatch):
        resolve(exe, C, debug_file=other)
    with pytest.raises(NoDebugInfo):
        resolve(exe, C, debug_file=exe)


def test_named_file_without_build_id(tmp_path: Path) -> None:
    path = build_c(*NO_ID)
    exe, debug = stripped(path, tmp_path / "bin")
    assert same(resolve(exe, C, debug_file=debug), path)
    assert same(resolve(exe, C, debug_file=path), path)  # the unstripped original: the very same code
    patched = tmp_path / "patched"
    data = bytearray(path.read_bytes())
    with Image(path) as image:
        text = next(s for s in image.sections if s.name == ".text")
    data[text.offset + text.size // 2] ^= 1
    patched.write_bytes(data)
    with pytest.raises(DebugFileMismatch, match="its code"):
        resolve(exe, C, debug_file=patched)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Debian's debuginfod on loopback, serving a folder."""
    program = shutil.which("debuginfod")
    if program is None:
        pytest.skip("debuginfod is not installed (apt-get install debuginfod)")
    folder = tmp_path / "served"
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [program, "-F", "-p", str(port), "-d", ":memory:", "-t", "1", str(folder)]
    with (tmp_path / "debuginfod.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "HOME": str(tmp_path)})
    yield f"http://127.0.0.1:{port}", folder
    process.send_signal(signal.SIGTERM)
    process.wait(20)


def test_debuginfod(server: tuple[str, Path], tmp_path: Path) -> None:
    url, folder = server
    path = build_c(*PROGRAM)
    exe, debug = stripped(path, tmp_path / "bin")
    shutil.move(debug, folder / "server.debug")
    ident = build_id(path)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:  # until it has indexed the folder
        try:
            urllib.request.urlopen(f"{url}/buildid/{ident}/debuginfo", timeout=5).close()
            break
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    searched = nowhere(tmp_path, urls=("http://127.0.0.1:9/", url))  # the first does not answer
    assert same(resolve(exe, C, searched=searched), path)
    kept = tmp_path / "client" / ident / "debuginfo"
    assert kept.stat().st_size
    assert same(resolve(exe, C, searched=nowhere(tmp_path)), path)  # from the client's cache, no server
    unknown, _debug = stripped(build_c("-g", "-O1"), tmp_path / "unknown")
    with pytest.raises(NoDebugInfo) as caught:
        resolve(unknown, C, searched=nowhere(tmp_path, urls=(url,)))
    assert any("404" in line for line in caught.value.tried)


_SERVER = """
import http.server, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        if sys.argv[1] == "short":
            self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"x" * (200_000 if sys.argv[1] == "long" else 10))
    def log_message(self, *args): pass
server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
print(server.server_port, flush=True)
server.serve_forever()
"""


@pytest.mark.parametrize(("kind", "outcome"), [("long", "more than"), ("short", "10 "), ("junk", "not an")])
def test_lying_server(kind: str, outcome: str, tmp_path: Path) -> None:
    exe, _debug = stripped(build_c(*PROGRAM), tmp_path / "bin")
    process = subprocess.Popen([sys.executable, "-c", _SERVER, kind], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"
        searched = nowhere(tmp_path, urls=(url,))
        searched.server.most_bytes = 100_000
        with pytest.raises(NoDebugInfo) as caught:
            resolve(exe, C, searched=searched)
        assert any(outcome in line for line in caught.value.tried)
    finally:
        process.kill()
        process.wait()
    left = [f for _d, _s, files in os.walk(tmp_path / "client") for f in files if f != "debuginfo"]
    assert left == []


@pytest.mark.parametrize("flags", [(), ("-no-pie", "-Wl,--build-id=none")], ids=["build-id", "no build-id"])
def test_deleted_executable_and_its_neighbours(flags: tuple[str, ...], tmp_path: Path) -> None:
    """Through /proc/PID/exe: the file is gone, its debug file is still beside where it was."""
    source = tmp_path / "waits.c"
    source.write_text("#include <unistd.h>\nint main(void) { return pause(); }\n")
    path = build_c("-g", *flags, source=str(source))
    exe, _debug = stripped(path, tmp_path / "bin", link=True)
    process = subprocess.Popen([exe])
    try:
        exe.unlink()
        with Image(f"/proc/{process.pid}/exe") as image:
            found = find_debug_file(image, nowhere(tmp_path))
            assert found.has_debug_info
            assert found.path.startswith(f"/proc/{process.pid}/root/")
            found.close()
    finally:
        process.kill()
        process.wait()


def test_container(tmp_path: Path) -> None:
    """Through /proc/PID/root: the debug directories of the process's own file system come first."""
    path = build_c(*PROGRAM)
    exe, debug = stripped(path, tmp_path / "bin", link=True)
    through = f"/proc/{os.getpid()}/root{exe}"
    assert same(resolve(through, C, searched=nowhere(tmp_path)), path)
    ident = build_id(path)
    home = tmp_path / "debug" / ".build-id" / ident[:2]
    home.mkdir(parents=True)
    debug.rename(home / f"{ident[2:]}.debug")
    with Image(through) as image:
        found = find_debug_file(image, nowhere(tmp_path, tmp_path / "debug"))
        assert found.path.startswith(f"/proc/{os.getpid()}/root{tmp_path}/debug/")
        found.close()


@pytest.mark.parametrize("method", ["zlib", "zlib-gnu", "zstd"])
def test_compressed_sections(method: str, tmp_path: Path) -> None:
    path = build_c(*PROGRAM)
    packed = tmp_path / "packed"
    made = subprocess.run(
        ["objcopy", f"--compress-debug-sections={method}", path, packed], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"objcopy: {made.stderr.strip()}")
    with Image(packed) as image:
        names = {s.name for s in image.sections}
        assert any(s.flags & 0x800 for s in image.sections) or any(n.startswith(".zdebug_") for n in names)
    assert same(resolve(packed, C), path)

"""What goes wrong at the user's: one screen, the next step, an exit code, no traceback."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.recording import MAGIC
from tests.integration.harness import cli, daemon, descendants, end, load, server, start_cli, wait_for
from tests.requirements import require_program
from tests.targets.build import CACHE_DIR

ROOT = Path(__file__).resolve().parents[2]
SCREEN_LINES = 24
NOBODY = 65534

TINY = r"""
const linux = @import("std").os.linux;
const Slot = struct { next: ?*Slot = null, data: [24]u8 = undefined };
const Pool = struct {
    free: ?*Slot = null,
    var slots: [4]Slot = @splat(.{});
    noinline fn create(self: *Pool) *Slot {
        if (self.free) |slot| {
            self.free = slot.next;
            return slot;
        }
        return &slots[0];
    }
    noinline fn destroy(self: *Pool, ptr: *Slot) void {
        ptr.next = self.free;
        self.free = ptr;
    }
};
pub fn main() void {
    var pool: Pool = .{};
    pool.destroy(pool.create());
    _ = linux.write(1, "ready\n", 6);
    var byte: [1]u8 = undefined;
    if (linux.read(0, &byte, 1) == 1) {
        const argv = [_:null]?[*:0]const u8{ "sleep", "60" };
        const env = [_:null]?[*:0]const u8{};
        _ = linux.execve("/bin/sleep", &argv, &env);
    }
}
"""
"""A program with a pool and nothing else: fast to build for other machines and without debug information. A
byte on its standard input makes it execute another program, the end of it ends it."""

PROFILE = """
name = "tiny"
[slot]
type = "tiny.Slot"
create = { function = "tiny.Pool.create", returns = "slot" }
destroy = { function = "tiny.Pool.destroy", slot = "ptr" }
[userdata]
kind = "pointer"
"""


def tiny(*flags: str) -> Path:
    digest = hashlib.sha256("\0".join((TINY, *flags)).encode()).hexdigest()[:16]
    folder = CACHE_DIR / f"tiny-{digest}"
    program = folder / "tiny"
    if not program.exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tiny.zig").write_text(TINY)
        command = [sys.executable, "-m", "ziglang", "build-exe", "tiny.zig", "-fno-omit-frame-pointer"]
        subprocess.run([*command, *flags, "-femit-bin=tiny.new"], cwd=folder, check=True, timeout=600)
        (folder / "tiny.new").rename(program)
    return program


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("profile") / "tiny.toml"
    file.write_text(PROFILE)
    return str(file)


@pytest.fixture(scope="module")
def program() -> str:
    return str(tiny("-fno-strip", "-OReleaseSafe"))


def screen(result: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """One screen on standard error: what failed, what to do next. Nothing on standard output."""
    text = result.stderr
    assert result.returncode == code, text + result.stdout
    assert "Traceback" not in text + result.stdout
    assert "defect of afterfree" not in text
    last = text[text.rindex("afterfree: ") :]
    assert len(text.splitlines()) <= SCREEN_LINES, text
    assert "\n  next\n" in last, f"no remedy: {text}"
    for word in words:
        assert word in text, f"{word!r} is not in: {text}"
    assert result.stdout == ""


# -- what needs neither root nor probes


def test_no_such_pid() -> None:
    limit = int(Path("/proc/sys/kernel/pid_max").read_text())
    screen(cli("watch", "--pid", str(limit - 1)), 1, f"no process {limit - 1}", "--exe")


@pytest.mark.parametrize("command", [("symbols",), ("watch", "--exe"), ("record", "-o", "x", "--exe")])
def test_not_elf(command: tuple[str, ...], tmp_path: Path) -> None:
    script = tmp_path / "server"
    script.write_text("#!/bin/sh\nexec /opt/server\n")
    screen(cli(*command, str(script)), 1, "not an ELF executable", "script")
    assert not Path("x").exists()


def test_no_such_executable() -> None:
    screen(cli("watch", "--exe", "/no/such/server"), 1, "/no/such/server", "readlink")


@pytest.mark.parametrize("command", ["symbols", "watch --exe"])
def test_stripped(command: str, profile: str) -> None:
    stripped = str(tiny("-fstrip", "-OReleaseSmall"))
    result = cli(*command.split(), stripped, "--profile", profile)
    screen(result, 3, "no debug information", "--debug-file")


def test_another_architecture_is_resolved_and_not_watched(profile: str) -> None:
    foreign = str(tiny("-fno-strip", "-OReleaseSmall", "-target", "aarch64-linux"))
    plan = cli("symbols", foreign, "--profile", profile)
    assert (plan.returncode, plan.stderr) == (0, "")
    assert "aarch64" in plan.stdout
    screen(cli("watch", "--exe", foreign, "--profile", profile), 3, "aarch64", "x86_64", "afterfree symbols")


@pytest.mark.parametrize("command", ["symbols", "watch --exe"])
def test_wrong_architecture(command: str, profile: str) -> None:
    foreign = str(tiny("-fno-strip", "-OReleaseSmall", "-target", "riscv64-linux"))
    screen(cli(*command.split(), foreign, "--profile", profile), 3, "machine")


def test_no_shipped_profile_fits(program: str) -> None:
    screen(cli("symbols", program), 1, "no profile fits", "http.zig", "--profile")


def test_profile_without_a_match(program: str, tmp_path: Path) -> None:
    file = tmp_path / "other.toml"
    file.write_text(PROFILE.replace("Pool.destroy", "Pool.release"))
    screen(
        cli("watch", "--exe", program, "--profile", str(file)), 1, "tiny.Pool.release", "afterfree symbols"
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (PROFILE.replace('kind = "pointer"', 'kind = "pointer'), ("not valid TOML", "line")),
        (PROFILE.replace('kind = "pointer"', 'kind = "handle"'), ("kind",)),
        (PROFILE.replace("destroy", "destory"), ("destory",)),
    ],
    ids=["syntax", "value", "key"],
)
def test_profile_with_an_error(text: str, words: tuple[str, ...], program: str, tmp_path: Path) -> None:
    file = tmp_path / "broken.toml"
    file.write_text(text)
    result = cli("symbols", program, "--profile", str(file))
    screen(result, 1, "profile is not valid", str(file), *words)


@pytest.mark.parametrize(
    "args",
    [("watch",), ("watch", "--pid", "none"), ("replay",), ("record", "--pid", "1"), ("wacth",), ("census",)],
    ids=" ".join,
)
def test_usage(args: tuple[str, ...]) -> None:
    screen(cli(*args), 2)


# -- recordings


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recording")
    file = folder / "run.afrec"
    with (
        server("ReleaseSafe", folder, "--bug", "double-destroy", "--every", "20", "--survive") as target,
        daemon(folder, "record", "--pid", str(target.pid), "-o", str(file)) as live,
    ):
        live.wait_ready()
        load(target.port, "churn", connections=2000).communicate(timeout=60)
        target.stop()
        assert live.process.wait(30) == 0, live.said()
    return file


@pytest.mark.bpf
def test_recording_to_a_full_disk(tmp_path: Path) -> None:
    with server("ReleaseSafe", tmp_path, "--survive") as target:
        result = cli("record", "--pid", str(target.pid), "-o", "/dev/full", "--duration", "1")
    assert result.returncode == 1
    for words in ("the recording is not whole", "No space left on device", "record to another disk"):
        assert words in result.stderr


@pytest.mark.bpf
@pytest.mark.timeout(120)
def test_a_folder_and_a_file_in_which_others_have_a_hand(tmp_path: Path) -> None:
    """Neither is used, neither holds anything up, and both stay as they are."""
    shared, fifo = tmp_path / "shared", tmp_path / "fifo"
    shared.mkdir()
    shared.chmod(0o1777)
    os.mkfifo(fifo, 0o666)
    with server("ReleaseSafe", tmp_path, "--survive") as target:
        watched = cli("watch", "--pid", str(target.pid), "--bundles", str(shared), "--duration", "1")
        recorded = cli("record", "--pid", str(target.pid), "-o", str(fifo), "--duration", "1")
    screen(
        watched, 1, "cannot keep crash bundles", "everybody may write it", f"{shared}/NAME", "--no-bundles"
    )
    screen(recorded, 1, "cannot write", "it is a FIFO", "/dev/stdout")
    assert shared.stat().st_mode & 0o7777 == 0o1777
    assert not list(shared.iterdir())


@pytest.mark.bpf
@pytest.mark.parametrize("command", ["replay", "census"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_truncated_recording(command: str, share: float, recording: Path, tmp_path: Path) -> None:
    whole = recording.read_bytes()
    cut = tmp_path / "cut.afrec"
    cut.write_bytes(whole[: int(len(whole) * share)])
    result = cli(command, str(cut))
    assert result.stdout, "what came before the cut is not judged"
    screen(
        subprocess.CompletedProcess([], result.returncode, "", result.stderr),
        1,
        "is truncated",
        "copy it again",
    )


@pytest.mark.bpf
def test_damaged_recording(recording: Path, tmp_path: Path) -> None:
    whole = bytearray(recording.read_bytes())
    middle = len(whole) // 2
    whole[middle : middle + 64] = bytes(64)
    broken = tmp_path / "broken.afrec"
    broken.write_bytes(whole)
    result = cli("replay", str(broken))
    screen(subprocess.CompletedProcess([], result.returncode, "", result.stderr), 1, str(broken))


@pytest.mark.bpf
def test_recording_of_another_version(recording: Path, tmp_path: Path) -> None:
    newer = tmp_path / "newer.afrec"
    newer.write_bytes(MAGIC + struct.pack("<H", 999) + recording.read_bytes()[len(MAGIC) + 2 :])
    screen(cli("replay", str(newer)), 1, "999", "version")


def test_not_a_recording(tmp_path: Path) -> None:
    for content in (b"", b"{}\n", os.urandom(4096)):
        file = tmp_path / "file"
        file.write_bytes(content)
        screen(cli("replay", str(file)), 1, "not a recording")


# -- prerequisites: every one is refused by watch and named by doctor


def _doctor(run: Callable[..., subprocess.CompletedProcess[str]], *names: str) -> None:
    """doctor exits with 3 and names exactly these as missing, each with a remedy.

    What could not even be tried for that reason is a failure as well.
    """
    asked = run("doctor", "--format", "json")
    assert asked.returncode == 3, asked.stderr
    assert "Traceback" not in asked.stderr + asked.stdout
    failed = {check["name"]: check for check in json.loads(asked.stdout)["checks"] if not check["ok"]}
    required = {name for name, check in failed.items() if check["required"] and check["tried"]}
    assert set(names) <= required <= {*names, "kernel side", "watching"}, required
    assert all(check["remedy"] for check in failed.values()), failed
    shown = run("doctor")
    assert shown.returncode == 3
    marked = [line.split(None, 2)[1] for line in shown.stdout.splitlines() if line.startswith(" MISSING")]
    assert set(names) <= set(marked), shown.stdout


@contextmanager
def running(program: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_doctor_is_content_here() -> None:
    if os.geteuid() != 0:
        pytest.skip("not root")
    result = cli("doctor")
    assert result.returncode == 0, result.stdout


@pytest.mark.bpf
@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("raise ModuleNotFoundError(\"No module named 'bcc'\")\n", ("bcc", "python3-bpfcc")),
        ("class Lattice: ...\n", ("bcc", "pip uninstall bcc", "python3-bpfcc")),
    ],
    ids=["missing", "another"],
)
def test_bcc(source: str, words: tuple[str, ...], program: str, profile: str, tmp_path: Path) -> None:
    """Beside our own packages: neither PYTHONPATH nor the current folder would be looked at."""
    _copied(tmp_path)
    (tmp_path / "bcc").mkdir()
    (tmp_path / "bcc" / "__init__.py").write_text(source)

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "agent.cli", *args],
            capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False,
        )  # fmt: skip

    with running(program) as target:
        screen(run("watch", "--pid", str(target.pid), "--profile", profile), 3, *words)
    _doctor(run, "bcc")


def _copied(folder: Path) -> None:
    """An installation of its own."""
    for part in ("agent", "probes", "symbols"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))


@pytest.mark.bpf
def test_not_root(program: str, profile: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    setpriv = require_program("setpriv")
    # A copy that everybody may read, the program too; pytest's own folders are private.
    folder = Path("/tmp") / f"afterfree-nobody-{os.getpid()}"
    folder.mkdir(mode=0o755)
    try:
        _copied(folder)
        shutil.copy(profile, folder / "tiny.toml")
        shutil.copy(program, folder / "tiny")

        def run(*args: str) -> subprocess.CompletedProcess[str]:
            who = [setpriv, "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups", "--"]
            return subprocess.run(
                [*who, sys.executable, "-m", "agent.cli", *args],
                capture_output=True, text=True, timeout=120, cwd=folder, check=False,
                env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            )  # fmt: skip

        with running(program) as target:
            by_pid = run("watch", "--pid", str(target.pid), "--profile", "tiny.toml")
            screen(by_pid, 3, "not allowed", "needs root", "sudo")
            by_exe = run("watch", "--exe", str(folder / "tiny"), "--profile", "tiny.toml")
            screen(by_exe, 3, "not root", "sudo")
        _doctor(run, "root")
        assert run("symbols", "tiny", "--profile", "tiny.toml").returncode == 0
    finally:
        shutil.rmtree(folder)


@pytest.mark.bpf
def test_tracefs_that_cannot_be_mounted(program: str, profile: str) -> None:
    unshare = require_program("unshare")
    hide = 'mount -t tmpfs -o ro none /sys/kernel && exec "$@"'

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [unshare, "--mount", "sh", "-c", hide, "sh", sys.executable, "-m", "agent.cli", *args],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    with running(program) as target:
        result = run("watch", "--pid", str(target.pid), "--profile", profile)
        screen(result, 3, "tracefs", "mount -t tracefs")
    _doctor(run, "tracefs")


# -- targets that do not wait


def _while_attaching(program: str, profile: str, act: Callable[[subprocess.Popen[str]], None]) -> str:
    """What `watch` says when `act` happens to its target as soon as the loader child runs."""
    with running(program) as target:
        watch = start_cli("watch", "--pid", str(target.pid), "--profile", profile)
        try:
            wait_for(
                lambda: any("probes.loader_main" in line for line in descendants(watch.pid).values()),
                30,
                "no loader child",
            )
            act(target)
            out, err = watch.communicate(timeout=60)
        finally:
            if watch.poll() is None:
                end(watch, signal.SIGKILL)
    screen(subprocess.CompletedProcess([], watch.returncode, out, err), 1, "while it was being attached")
    return err


@pytest.mark.bpf
def test_target_that_exits_while_attaching(program: str, profile: str) -> None:
    assert "exited" in _while_attaching(program, profile, lambda target: target.kill())


@pytest.mark.bpf
def test_target_that_executes_another_program_while_attaching(program: str, profile: str) -> None:
    def execute(target: subprocess.Popen[str]) -> None:
        assert target.stdin is not None
        target.stdin.write("x")
        target.stdin.flush()
        wait_for(lambda: os.readlink(f"/proc/{target.pid}/exe") != program, what="exec")

    assert "executed another program" in _while_attaching(program, profile, execute)

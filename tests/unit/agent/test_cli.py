"""What failed, detail, likely causes, what to run next; the exit code; never a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent import __version__, cli
from agent.errors import ExitCode, PrerequisiteMissing
from agent.recording import PREFIX, RecordingWriter
from agent.symbolize import SymbolClient
from agent.text import plain
from probes.events import LifetimesCounted, Tick
from tests.unit.agent.scenario import BATCH, PLAN, WITNESSES

ROOT = Path(__file__).resolve().parents[3]


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    code = cli.run(args)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def one_screen(text: str) -> None:
    assert "Traceback" not in text
    assert text.startswith("afterfree: ")
    assert len(text.splitlines()) <= 24


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "r.afrec"
    writer = RecordingWriter.open(path)
    for event in (*WITNESSES, BATCH, LifetimesCounted(ts=5, counts={1 | 4 | 32 | 64 | 32768: 7}), Tick(ts=6)):
        writer.write(event)
    writer.close()
    return path


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for name in ("watch", "record", "replay", "census", "symbols", "doctor", "demo"):
        assert f"\n  {name} " in out


@pytest.mark.parametrize("name", ["watch", "record", "replay", "census", "symbols", "doctor", "demo"])
def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str], name: str) -> None:
    code, out, _ = run(capsys, name, "--help")
    assert code == 0
    assert f"afterfree {name}" in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version")[:2] == (0, f"afterfree {__version__}\n")


@pytest.mark.parametrize(
    "args",
    [
        ("fly",),
        ("watch", "--pid", "none"),
        ("watch", "--pid", "0"),
        ("watch",),
        ("record", "--pid", "1"),
        ("record", "--pid", "1", "-o", "x", "--max-size", "big"),
        ("census",),
        ("replay", "x", "--fail-on", "dice"),
        ("replay", "x", "--timeline", "--format", "json"),
        ("symbols",),
    ],
)
def test_misuse_is_exit_code_2(capsys: pytest.CaptureFixture[str], args: tuple[str, ...]) -> None:
    code, _, err = run(capsys, *args)
    assert code == ExitCode.USAGE
    one_screen(err)
    assert "  next" in err


def test_no_such_pid(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "watch", "--pid", str(2**22 + 7))
    assert code == ExitCode.RUNTIME
    one_screen(err)
    assert "there is no process" in err
    assert "afterfree watch --exe" in err


def test_no_such_program(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "watch", "--exe", "/nonexistent/\x1b[31mserver")
    assert code == ExitCode.RUNTIME
    one_screen(err)
    assert "\x1b" not in err
    assert "/nonexistent/\\x1b[31mserver" in err


def test_not_elf(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    script = tmp_path / "server.sh"
    script.write_text("#!/bin/sh\n")
    code, _, err = run(capsys, "symbols", str(script))
    assert code == ExitCode.RUNTIME
    one_screen(err)
    assert "not an ELF executable" in err
    assert "script or a wrapper" in err


def test_stripped(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["symbols"], ["symbols", "--suggest"], ["symbols", "--format", "json"]):
        code, out, err = run(capsys, *command, "/bin/ls")
        assert code == ExitCode.PREREQUISITE
        assert out == ""
        one_screen(err)
        assert "no debug information" in err
        assert "--debug-file" in err


def test_a_profile_with_a_mistake(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    profile = tmp_path / "p.toml"
    profile.write_text('name = "x"\n[slot\n')
    code, _, err = run(capsys, "symbols", "/bin/ls", "--profile", str(profile))
    assert code == ExitCode.RUNTIME
    one_screen(err)
    assert "profile is not valid" in err
    assert "line 2" in err


def test_wrong_architecture(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    foreign = tmp_path / "arm"
    image = bytearray(Path("/bin/ls").read_bytes())
    image[18:20] = (40).to_bytes(2, "little")  # e_machine, EM_ARM
    foreign.write_bytes(bytes(image))
    for command in (["symbols"], ["symbols", "--suggest"]):
        code, _, err = run(capsys, *command, str(foreign))
        assert code == ExitCode.PREREQUISITE
        one_screen(err)
        assert "arm" in err
        assert "for x86-64 or aarch64" in err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not a recording"),
        (b"hello, world, this is text", "is not a recording"),
        (PREFIX.pack(b"AFTERFREE-REC\0", 77), "another version"),
        (PREFIX.pack(b"AFTERFREE-REC\0", 1), "truncated"),
    ],
)
def test_recordings_that_are_none(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / "r.afrec"
    path.write_bytes(content)
    code, _, err = run(capsys, "replay", str(path))
    assert code == ExitCode.RUNTIME
    one_screen(err)
    assert words in err


def test_a_truncated_recording_is_replayed_first(capsys: pytest.CaptureFixture[str], recording: Path) -> None:
    recording.write_bytes(recording.read_bytes()[:-4])
    code, out, err = run(capsys, "replay", str(recording))
    assert code == ExitCode.RUNTIME
    assert "no finding above warning" in out
    one_screen(err)
    assert "is truncated" in err


def test_replay_of_a_quiet_recording(capsys: pytest.CaptureFixture[str], recording: Path) -> None:
    code, out, err = run(capsys, "replay", str(recording), "--fail-on", "high")
    assert code == 0
    assert "no finding above warning" in out
    assert "1 target" in out
    assert err == ""
    # Its lifetimes close on another thread without a DEL: a warning.
    assert run(capsys, "replay", str(recording), "--fail-on", "warning")[0] == ExitCode.FINDINGS


def test_replay_draws_the_timeline(capsys: pytest.CaptureFixture[str], recording: Path) -> None:
    code, out, _ = run(capsys, "replay", str(recording), "--timeline")
    assert code == 0
    assert "first wait here" in out


def test_census_of_a_recording(capsys: pytest.CaptureFixture[str], recording: Path) -> None:
    code, out, _ = run(capsys, "census", str(recording))
    assert code == 0
    assert "ADD@loop · deliver · CLOSE@worker · DESTROY@loop" in out
    assert "carry a hazard" in out
    code, out, _ = run(capsys, "census", str(recording), "--format", "json")
    value = json.loads(out)
    assert (value["schema"], value["total"]) == ("afterfree.census/1", 7)


def test_the_plan_is_json_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SymbolClient, "resolve", lambda *_: PLAN)
    code, out, _ = run(capsys, "symbols", "x", "--format", "json")
    assert code == 0
    assert json.loads(out)["sites"][0]["role"] == "destroy"
    code, out, _ = run(capsys, "symbols", "x")
    assert "destroy  heap.memory_pool.Extra(…).destroy" in out.replace(
        "Extra(worker.Conn(…),.{})", "Extra(…)"
    ).replace("Extra(worker.Conn(poolserver.NoWebsocket),.{})", "Extra(…)")
    assert "ptr = rbx" in out


def test_unprobed_instances_are_listed() -> None:
    from agent.plan_text import plan_lines

    unprobed = [
        {
            "role": "destroy",
            "function": "destroy",
            "kind": "inlined",
            "address": None,
            "enclosing": "f",
            "call_site": {"file": "a/b.zig", "line": 3, "column": 1},
            "reason": "its argument has no location",
        }
    ]
    text = plain(plan_lines({**PLAN, "unprobed": unprobed, "warnings": ["odd"]}))
    assert "1 instance cannot be probed" in text
    assert "its argument has no location" in text
    assert "b.zig:3" in text
    assert "odd" in text


class TestDoctor:
    @pytest.fixture(autouse=True)
    def _known(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The symbol worker is not what these are about."""
        monkeypatch.setattr(SymbolClient, "hello", lambda _: None)

    def checks(self, monkeypatch: pytest.MonkeyPatch, *, ok: bool) -> None:
        from probes import preflight

        made = (
            preflight.Check(name="root", ok=True, required=True, detail="uid 0", remedy="", lost=""),
            preflight.Check(
                name="bcc",
                ok=ok,
                required=True,
                detail="not importable",
                remedy="apt-get install python3-bpfcc",
                lost="attaching",
            ),
        )
        monkeypatch.setattr(preflight, "checks", lambda: made)

    def test_all_there(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.checks(monkeypatch, ok=True)
        code, out, _ = run(capsys, "doctor")
        assert code == 0
        assert "this machine can run afterfree" in out

    def test_one_missing(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.checks(monkeypatch, ok=False)
        code, out, _ = run(capsys, "doctor")
        assert code == ExitCode.PREREQUISITE
        assert "apt-get install python3-bpfcc" in out
        assert "lost without it: attaching" in out
        code, out, _ = run(capsys, "doctor", "--format", "json")
        assert code == ExitCode.PREREQUISITE
        assert json.loads(out)["ok"] is False

    def test_what_cannot_be_checked_is_no_machine_that_can(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Once a check that broke was "optional and absent", with its program text as the reason."""
        from probes import preflight

        def broken() -> preflight.Check:
            raise subprocess.TimeoutExpired(["python", "-c", "program text"], 30)

        made = (preflight.guarded("watching", broken),)
        monkeypatch.setattr(preflight, "checks", lambda: made)
        code, out, _ = run(capsys, "doctor")
        assert code == ExitCode.PREREQUISITE
        assert "\nthis machine can run afterfree" not in out
        assert "1 could not be checked" in out
        assert "UNKNOWN" in out
        assert "next: " in out

    def test_a_worker_without_its_packages(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.checks(monkeypatch, ok=True)

        def hello(_: SymbolClient) -> None:
            raise PrerequisiteMissing("a Python package is missing", detail="No module named 'elftools'")

        monkeypatch.setattr(SymbolClient, "hello", hello)
        code, out, _ = run(capsys, "doctor")
        assert code == ExitCode.PREREQUISITE
        assert "No module named 'elftools'" in out


class TestExplain:
    def test_probe_errors_keep_their_exit_code(self) -> None:
        from probes.errors import LoaderFailed, NotRoot

        assert cli.explain(NotRoot(1000)).code == ExitCode.PREREQUISITE
        assert cli.explain(LoaderFailed("x", remedy="y")).code == ExitCode.RUNTIME

    def test_symbol_errors_are_explained(self) -> None:
        from symbols.errors import NoProfileMatch

        message = str(cli.explain(NoProfileMatch("none fits", path="/bin/x")))
        assert "afterfree symbols /bin/x --profile FILE" in message

    def test_anything_else_is_our_own_defect(self) -> None:
        message = str(cli.explain(ZeroDivisionError("division by zero")))
        one_screen(message)
        assert "AFTERFREE_DEBUG=1" in message

    def test_values_are_made_printable(self) -> None:
        text = str(cli.explain(PrerequisiteMissing("a\x1bb", detail="c\x07d", remedy="e\x00")))
        assert not any(ord(c) < 32 and c != "\n" for c in text)


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AFTERFREE_DEBUG", "1")
    from agent.errors import RecordingError

    with pytest.raises(RecordingError):
        cli.run(["replay", str(tmp_path / "none")])


def process(*args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agent.cli", *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "AFTERFREE_DEBUG": ""},
        **options,
    )


def test_as_a_process() -> None:
    result = process("watch", "--pid", str(2**22 + 7))
    assert result.returncode == ExitCode.RUNTIME
    one_screen(result.stderr)


def test_a_reader_that_goes_away_is_no_drama(recording: Path) -> None:
    script = f'"{sys.executable}" -m agent.cli census "{recording}" | true; exit "${{PIPESTATUS[0]}}"'
    result = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr


def test_the_daemon_loads_no_heavy_module() -> None:
    """Plans are resolved and addresses symbolized in a child: these cost the daemon 10 MB and more."""
    code = (
        "import sys, agent.cli, agent.commands.live, agent.commands.watch, probes.session, symbols.serial;"
        "heavy = {'bcc', 'numpy', 'rich', 'elftools', 'capstone', 'symbols.resolve'};"
        "print(','.join(sorted(heavy & set(sys.modules))))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.stderr == ""
    assert result.stdout.strip() == ""


def test_a_bare_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([]) == ExitCode.USAGE
    said = capsys.readouterr().err
    assert said.startswith("Usage: afterfree")
    assert "\\x0a" not in said


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("postmortem", "TEXT", "--exe", "/bin/ls"), "not a core file: TEXT\n  not a 64-bit ELF file"),
        (
            ("postmortem", "/bin/ls", "--exe", "/bin/ls"),
            "not a core file: /bin/ls\n  an ELF file, but no core",
        ),
        (("postmortem", "FOLDER", "--exe", "/bin/ls"), "not a core file: FOLDER\n  not a regular file"),
        (("postmortem", "TEXT/x", "--exe", "/bin/ls"), "cannot read the core file: TEXT/x\n"),
        (("postmortem", "PACKED", "--exe", "/bin/ls"), "a compressed core file: PACKED\n"),
        (("report", "TEXT"), "not a bundle: TEXT\n  it does not begin as a .tar.zst does"),
        (("report", "PACKED"), "cannot read the bundle PACKED\n  it is damaged or was cut off: "),
        (("report", "FOLDER"), "not a bundle: FOLDER\n  it holds no manifest.json"),
        (("report", "TEXT/x"), "cannot read the bundle TEXT/x\n  Not a directory\n"),
        (("symbols", "FOLDER"), "not a file: FOLDER\n"),
        (("symbols", "--suggest", "FOLDER"), "not a file: FOLDER\n"),
        (("watch", "--exe", "FOLDER"), "not a file: FOLDER\n"),
    ],
)
def test_the_argument_that_is_wrong_is_named_for_what_it_should_be(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, args: tuple[str, ...], said: str
) -> None:
    (tmp_path / "TEXT").write_text("root:x:0:0:\n" * 10)
    (tmp_path / "PACKED").write_bytes(b"\x28\xb5\x2f\xfd" + b"\xff" * 60)
    (tmp_path / "FOLDER").mkdir()
    names = ("TEXT", "PACKED", "FOLDER")
    given = [str(tmp_path / arg) if arg.split("/")[0] in names else arg for arg in args]
    code, _, err = run(capsys, *given)
    one_screen(err)
    assert code in (ExitCode.RUNTIME, ExitCode.PREREQUISITE)
    assert said in err.replace(f"{tmp_path}/", "")
    assert "script" not in err


@pytest.mark.parametrize("command", [("symbols",), ("symbols", "--suggest")])
def test_where_debug_information_was_looked_for_is_said(
    capsys: pytest.CaptureFixture[str], command: tuple[str, ...], tmp_path: Path
) -> None:
    stripped = tmp_path / "stripped"
    source = tmp_path / "p.c"
    source.write_text("int main(void) { return 0; }\n")
    subprocess.run(["cc", "-s", "-o", stripped, source], check=True)
    _, _, err = run(capsys, *command, str(stripped))
    assert "no DWARF debug information" in err
    assert "tried debuginfod: " in err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--pid", "abc"), "'abc' is not a whole number of at least 1"),
        (("--pid", "0"), "'0' is not a whole number of at least 1"),
        (("--pid", "1", "--duration", "soon"), "'soon' is not a number of seconds above 0"),
        (("--pid", "1", "--max-threads", "1"), "'1' is not a whole number from 64 to 1,048,576"),
        (("--pid", "1", "--freeze-max", "99"), "'99' is not a number of seconds from 0.01 to 60.0"),
    ],
)
def test_a_number_that_is_none_is_told_in_words(
    capsys: pytest.CaptureFixture[str], args: tuple[str, ...], said: str
) -> None:
    code, _, err = run(capsys, "watch", *args)
    assert code == ExitCode.USAGE
    assert said in err
    assert "range" not in err

"""The daemon's side of symbols: never blocks, survives its worker, keeps what was asked."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from agent import cli
from agent.errors import SymbolsFailed
from agent.symbolize import Question, SymbolClient
from symbols.keptplans import KeptPlans
from tests.requirements import require_program
from tests.unit.symbols.builds import C_PROFILE, build_c

WORKER = Path(__file__).with_name("fake_worker.py")
ROOT = Path(__file__).resolve().parents[3]


def client(mode: str, **options: Any) -> SymbolClient:
    return SymbolClient(command=[sys.executable, str(WORKER), mode], **options)


@pytest.fixture
def good() -> Iterator[SymbolClient]:
    made = client("good", idle=0.2)
    yield made
    made.close()


def question(address: int) -> Question:
    return Question("frames", "id", (address,))


def test_answers_come_in_batches_and_are_logged(good: SymbolClient) -> None:
    asked = [question(n) for n in range(200)]
    for one in asked:
        good.ask(one)
        good.ask(one)
    assert good.answer(asked[0]) is None
    good.settle(10)
    for n, one in enumerate(asked):
        assert good.answer(one) == {"frames": [["f", "a.zig", n, 0, False]]}
    log = good.drain()
    assert len(log) == 200
    assert log[7] == (["frames", "id", [7]], good.answer(asked[7]))
    assert good.drain() == []


def test_the_worker_ends_when_idle_and_comes_back(good: SymbolClient) -> None:
    good.ask(question(1))
    good.settle(10)
    first = good._worker
    assert first is not None
    end = time.monotonic() + 5
    while first.poll() is None and time.monotonic() < end:
        good.pump(0.05)
        time.sleep(0.01)
    assert first.poll() is not None
    good.ask(question(2))
    good.settle(10)
    assert good.answer(question(2)) is not None


@pytest.mark.parametrize(("mode", "stays"), [("good", True), ("grown", False)])
def test_a_worker_that_had_to_resolve_leaves(mode: str, stays: bool) -> None:
    """Questions need half of its memory: they get a new one."""
    made = client(mode)
    assert made.resolve("/bin/x")["identity"] == "id"
    assert (made._worker is not None) is stays
    made.ask(question(1))
    made.settle(10)
    assert made.answer(question(1)) is not None
    made.close()


def test_its_death_becomes_a_reason() -> None:
    made = client("die")
    for n in range(5):
        made.ask(question(n))
        made.settle(10)
    assert made.answer(question(0)) == {"reason": "the symbol worker was killed by signal 9 (SIGKILL)"}
    last = made.answer(question(4))
    assert last is not None
    assert "not started again" in str(last["reason"])


def test_a_worker_that_hangs_is_given_up() -> None:
    made = client("hang", deadline=0.3)
    made.ask(question(1))
    started = time.monotonic()
    made.settle(10)
    assert time.monotonic() - started < 5
    assert "did not answer" in str((made.answer(question(1)) or {}).get("reason"))
    assert made._worker is None


def test_settle_leaves_nothing_open() -> None:
    made = client("hang")
    made.ask(question(1))
    made.pump()
    made.ask(question(2))
    made.settle(0.1)
    assert not made.busy
    assert "reason" in (made.answer(question(1)) or {})
    assert "reason" in (made.answer(question(2)) or {})


def test_garbage_is_no_answer() -> None:
    made = client("garbage")
    made.ask(question(1))
    made.settle(10)
    assert "reason" in (made.answer(question(1)) or {})
    made.close()


def test_a_program_that_cannot_start_is_a_reason() -> None:
    made = SymbolClient(command=["/nonexistent/worker"])
    made.ask(question(1))
    made.settle(5)
    assert "could not be asked" in str((made.answer(question(1)) or {}).get("reason"))


def test_stored_answers_come_first() -> None:
    made = SymbolClient(
        command=["/nonexistent/worker"], stored={question(9).key: {"frames": [["g", "", 0, 0, False]]}}
    )
    made.ask(question(9))
    assert made.answer(question(9)) == {"frames": [["g", "", 0, 0, False]]}
    assert not made.busy


def test_resolve(good: SymbolClient) -> None:
    assert good.resolve("/bin/x")["image"] == "/bin/x"


def test_no_cache_reaches_the_worker(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("agent.symbolize.SymbolClient", lambda **options: client("good", **options))
    for options in ([], ["--no-cache"]):
        assert cli.run(["symbols", "--format", "json", *options, "/bin/x"]) == 0
        assert json.loads(capsys.readouterr().out)["fresh"] is bool(options)


def test_a_refusal_keeps_what_the_user_needs() -> None:
    made = client("refuse")
    with pytest.raises(SymbolsFailed) as caught:
        made.resolve("/bin/stripped")
    made.close()
    assert caught.value.kind == "NoDebugInfo"
    assert "/bin/stripped" in caught.value.title
    assert "--debug-file" in caught.value.remedy
    assert caught.value.causes


@pytest.mark.parametrize("mode", ["die", "hang", "garbage"])
def test_resolve_with_a_broken_worker(mode: str) -> None:
    made = client(mode, patience=0.5)
    with pytest.raises(SymbolsFailed):
        made.resolve("/bin/x")
    made.close()


def test_the_real_worker_has_its_packages() -> None:
    made = SymbolClient()
    made.hello()
    made.close()


def test_one_that_dies_at_once_has_last_words() -> None:
    made = SymbolClient(command=[sys.executable, "-c", "import no_such_module"])
    with pytest.raises(SymbolsFailed, match="No module named 'no_such_module'"):
        made.resolve("/bin/x")
    made.close()


def test_one_that_died_before_it_was_asked_has_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    made = SymbolClient(command=[sys.executable, "-c", "import no_such_module"])
    start = made._start

    def and_die() -> None:
        start()
        assert made._worker is not None
        made._worker.wait(30)

    monkeypatch.setattr(made, "_start", and_die)
    with pytest.raises(SymbolsFailed, match="No module named 'no_such_module'"):
        made.resolve("/bin/x")
    made.close()


def test_the_real_worker_refuses_a_script(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")
    made = SymbolClient()
    with pytest.raises(SymbolsFailed) as caught:
        made.resolve(str(script))
    made.close()
    assert caught.value.kind == "NotElf"


def test_the_real_worker_says_when_the_image_is_unknown() -> None:
    made = SymbolClient()
    made.ask(Question("frames", "sha256:00", (4096,)))
    made.settle(20)
    made.close()
    assert "reason" in (made.answer(Question("frames", "sha256:00", (4096,))) or {})


def test_one_that_keeps_rights_is_told_of_once() -> None:
    said: list[str] = []
    reply = {"answers": [{"reason": "x"}], "lacks": ["its system calls are not filtered (Invalid argument)"]}
    code = f"import sys\nfor _ in sys.stdin: print({json.dumps(reply)!r}, flush=True)"
    made = SymbolClient(command=[sys.executable, "-c", code], on_notice=said.append)
    for address in (1, 2):
        made.ask(question(address))
        made.settle(10)
    made.close()
    assert len(said) == 1
    assert "more rights than needed: its system calls are not filtered" in said[0]


def test_the_real_worker_reads_what_only_its_owner_can(tmp_path: Path) -> None:
    """Also where our own code lies out of reach of nobody: in root's home, say."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    exe, profile = closed / "program", closed / "profile.toml"
    source = closed / "program.c"
    source.write_text(
        "struct slot { void *next; long data; };\nstatic struct slot *pool;\n"
        "__attribute__((noinline)) struct slot *take(void)\n"
        "{ struct slot *one = pool; pool = one->next; return one; }\n"
        "__attribute__((noinline)) void give(struct slot *one) { one->next = pool; pool = one; }\n"
        "int main(void) { static struct slot all[2]; give(all); give(all + 1); give(take()); return 0; }\n"
    )
    subprocess.run([require_program("gcc"), "-g", "-O1", "-o", str(exe), str(source)], check=True)
    profile.write_text(
        'name = "test"\n[slot]\ntype = "slot"\ncreate = { function = "take", returns = "slot" }\n'
        'destroy = { function = "give", slot = "one" }\n[userdata]\nkind = "pointer"\n'
    )
    for path in (exe, profile):
        path.chmod(0o700)
    for package in ("agent", "probes", "symbols"):
        shutil.copytree(
            ROOT / package, closed / package, ignore=shutil.ignore_patterns("__pycache__", "*.c", "*.h")
        )
    code = (
        f"import sys; sys.path.insert(0, {str(closed)!r}); from agent.symbolize import SymbolClient\n"
        f"made = SymbolClient(fresh=True); plan = made.resolve({str(exe)!r}, {str(profile)!r})\n"
        "print(len(plan['sites'])); made.close()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd="/", capture_output=True, text=True, check=False
    )
    assert (result.stderr, result.stdout) == ("", "2\n")


def test_a_plan_that_is_kept_needs_no_worker(tmp_path: Path) -> None:
    """Until the file, the profile or our own code is another one."""
    exe, profile = build_c("-g", "-O2"), tmp_path / "p.toml"
    profile.write_text(C_PROFILE)
    kept = KeptPlans(str(tmp_path / "cache"), lambda: time.time_ns() + 3600 * 10**9)
    with closing(SymbolClient(kept=kept)) as first:
        plan = first.resolve(str(exe), str(profile))
    with closing(SymbolClient(kept=kept, command=["/nonexistent"])) as second:
        second.begin(str(exe), str(profile), None)
        assert second.resolve(str(exe), str(profile)) == plan
        profile.write_text(C_PROFILE + "\n")
        with pytest.raises(SymbolsFailed):
            second.resolve(str(exe), str(profile))
    with closing(SymbolClient(kept=kept, fresh=True, command=["/nonexistent"])) as fresh:
        profile.write_text(C_PROFILE)
        with pytest.raises(SymbolsFailed):
            fresh.resolve(str(exe), str(profile))

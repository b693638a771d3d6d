"""The report a person reads at 3 a.m., and its JSON form."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest

from agent import report
from agent.correlator.findings import ROLES, Actor, Candidate, Confidence, Severity
from agent.exhibit import SCHEMA, SourceFrame, crash_exhibit, exhibit
from agent.scene import Scene
from agent.sinks import json_line
from agent.symbolize import Answer, Question
from agent.text import Printer, plain
from probes.abi import RegState
from probes.events import CrashSeen, Moment, StackSeen
from tests.unit.agent.correlator.playbook import life
from tests.unit.agent.scenario import ATTACHED, BATCH, PID, PLAN, WITNESSES, FixedAnswers, at, finding


@pytest.fixture
def scene() -> Scene:
    scene = Scene()
    for event in (*WITNESSES, BATCH):
        scene.feed(event)
    return scene


EXPECTED = """\
────────────────────────────────────────────────────────────────────────────────────────────────
 CRITICAL  stale-delivery · later-batch   #a1b2c3
 epoll delivered an event for a slot that had already been destroyed

 slot       0x7f12a4c31040  generation 3   worker.Conn(poolserver.NoWebsocket)
 watched by fd 23 · epoll instance 5 · batch 912
 target     4711 poolserver   /usr/local/bin/poolserver   attached while it ran

 registered by loop 4711 "srv-loop"            at 12.345678 s
            in         worker.NonBlocking.monitorRead  worker.zig:640:20   through os.linux.epoll_ctl
            called by  worker.NonBlocking.accept  worker.zig:402:13
 closed     by worker 4713 "srv\\x1b[31m-w0"    at 12.349112 s   3.43 ms later
            in         worker.Conn.close  worker.zig:1210:9   through posix.close
            inlined in worker.processHTTPData  worker.zig:951:17
 destroyed  by loop 4711 "srv-loop"            at 12.349924 s   812 µs later
            in         worker.NonBlocking.disown  worker.zig:812:9   through heap.memory_pool.Extra(…).destroy
 delivered  by loop 4711 "srv-loop"            at 12.351000 s   1.08 ms later   IN|RDHUP
            in         worker.NonBlocking.run  worker.zig:512:30
 measured   window 1.08 ms
 memory     0000000000000000 aaaaaaaaaaaaaaaa aaaaaaaaaaaaaaaa aaaaaaaaaaaaaaaa
            protocol = .http = null   (free-list link: end of list)
            fd = 0xaaaaaaaa
 how sure   observed: every step of the chain was seen, and nothing was lost in between
 do         Remove the registration with EPOLL_CTL_DEL before close().
────────────────────────────────────────────────────────────────────────────────────────────────
"""


def test_the_report_as_a_whole(scene: Scene) -> None:
    assert plain(report.report(exhibit(finding(), scene), FixedAnswers())) == EXPECTED


def test_it_fits_one_screen(scene: Scene) -> None:
    crowded = finding(
        actors=tuple(
            actor._replace(role=role)
            for role, actor in zip(
                ("created", "registered", "removed", "closed", "destroyed", "delivered", "dispatched"),
                (*finding().actors, *finding().actors[:3]),
                strict=True,
            )
        ),
        reasons=("one " * 30, "two " * 30),
        advice=("do this " * 30, "or that " * 30),
    )
    lines = plain(report.report(exhibit(crowded, scene), FixedAnswers())).splitlines()
    assert len(lines) <= 50
    assert max(len(line) for line in lines) <= 120


def test_without_symbols_it_says_why(scene: Scene) -> None:
    text = plain(
        report.report(exhibit(finding(), scene), FixedAnswers("the symbol worker was killed by signal 9"))
    )
    assert "0x1001444 ?   the symbol worker was killed by signal 9" in text
    assert "not decoded: the symbol worker was killed by signal 9" in text


def test_unseen_steps_concurrency_candidates_and_update(scene: Scene) -> None:
    odd = finding(
        confidence=Confidence.UNCERTAIN,
        actors=(
            Actor(role="registered", moment=Moment(), note="before the attach"),
            Actor(role="destroyed", moment=at(5, 4713, 2), concurrent=True, gap_ns=5),
        ),
        candidates=(
            Candidate(
                role="older", generation=2, epfd=5, fd=23, events=1, state=RegState.ORPHAN, added=Moment()
            ),
        ),
        count=12_345,
        unit="deliveries",
    )
    text = plain(report.report(exhibit(odd, scene), FixedAnswers()))
    assert "registered not seen (before the attach)" in text
    assert "concurrent with the step before" in text
    assert "candidate  older registration: fd 23 on epoll instance 5, generation 2, orphan" in text
    assert "12,345 deliveries" in text
    assert "goes on: 12,345 deliveries" in plain(report.update(odd))


def test_who_made_a_duplicate_is_a_step_like_the_others(scene: Scene) -> None:
    actors = (
        finding().actors[0],
        Actor(role="duplicated", moment=at(12_348.0, 4713, 2), gap_ns=2_322_000, note="fd 31"),
        *finding().actors[1:],
    )
    item = exhibit(finding(actors=actors), scene)
    rows = plain(report.report(item, FixedAnswers())).splitlines()
    step = next(number for number, row in enumerate(rows) if row.startswith(" duplicated by worker 4713"))
    assert rows[step].endswith("at 12.348000 s   2.32 ms later   fd 31")
    assert "inlined in worker.processHTTPData  worker.zig:951:17" in rows[step + 2]
    value = item.to_json(FixedAnswers())["actors"][1]
    assert (value["role"], value["thread"], value["frames"][1]["line"]) == ("duplicated", "worker", 1210)


@pytest.mark.parametrize("role", sorted(ROLES))
def test_the_roles_of_actors_have_a_label_that_fits(role: str, scene: Scene) -> None:
    """A label that is too long would run into what follows."""
    odd = finding(actors=(Actor(role=role, moment=at(5, 4713, 2)),))
    text = plain(report.report(exhibit(odd, scene), FixedAnswers()))
    assert any(row.startswith(f" {report._VERBS[role]} ") for row in text.splitlines())


def test_an_unknown_target_is_no_obstacle() -> None:
    item = exhibit(finding(), Scene())
    assert "outside of every mapped file" in plain(report.report(item, FixedAnswers()))
    assert item.to_json(FixedAnswers())["target"] is None


def test_the_json_line(scene: Scene) -> None:
    line = json_line(exhibit(finding(comm="a\nb"), scene), FixedAnswers())
    assert "\n" not in line
    value = json.loads(line)
    assert value["schema"] == SCHEMA == "afterfree.finding/1"
    assert value["rule"] == "stale-delivery"
    assert value["severity"] == "critical"
    closed = value["actors"][1]
    assert (closed["role"], closed["thread"], closed["comm"]) == ("closed", "worker", "srv\x1b[31m-w0")
    assert closed["frames"][1] == {
        "ip": "0x1001333",
        "function": "worker.Conn.close",
        "file": "/src/worker.zig",
        "line": 1210,
        "column": 9,
        "inlined": True,
    }
    assert value["memory_as"]["lines"][1] == "fd = 0xaaaaaaaa"
    assert value["target"]["pid"] == PID


def test_colour_only_when_asked_and_no_escape_from_the_outside(scene: Scene) -> None:
    lines = report.report(exhibit(finding(), scene), FixedAnswers())
    stream = io.StringIO()
    Printer(stream).lines(lines)
    assert "\x1b" not in stream.getvalue()
    assert stream.getvalue() == EXPECTED


def test_no_colour_wins_over_a_terminal(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    Printer(stream).lines(report.report(exhibit(finding(), scene), FixedAnswers()))
    assert stream.getvalue() == EXPECTED
    monkeypatch.delenv("NO_COLOR")
    stream = Terminal()
    Printer(stream).lines(report.report(exhibit(finding(), scene), FixedAnswers()))
    assert "\x1b[" in stream.getvalue()
    assert "\\x1b[31m-w0" in stream.getvalue()


def test_every_severity_has_a_style(scene: Scene) -> None:
    for severity in Severity:
        assert severity.label.upper() in plain(
            report.report(exhibit(finding(severity=severity), scene), FixedAnswers())
        )


def test_a_crash_names_signal_address_and_place(scene: Scene) -> None:
    crash = CrashSeen(
        ts=1,
        tgid=PID,
        tid=4711,
        comm="srv-loop",
        signal=11,
        si_code=1,
        fault_addr=0x2F8,
        ip=0x1001554,
        registers={},
        stack=b"",
        batch=913,
    )
    text = plain(report.crash(crash_exhibit(crash, scene), FixedAnswers()))
    assert "SIGSEGV at address 0x2f8" in text
    assert "worker.zig:512:30" in text


def test_a_crash_in_libc_is_told_at_the_programs_own_frame(scene: Scene) -> None:
    inside = 0x7F00_0000_1234  # no mapped file at all: __pthread_kill_implementation, on a good day
    scene.feed(StackSeen(tgid=PID, id=77, pcs=(inside, 0x1001333)))
    crash = CrashSeen(
        ts=1,
        tgid=PID,
        tid=4711,
        comm="srv-loop",
        signal=6,
        si_code=-6,
        fault_addr=0,
        ip=inside,
        registers={},
        stack=b"",
        batch=913,
        stack_id=77,
    )
    shown = crash_exhibit(crash, scene)
    assert len(list(shown.questions())) == 1
    rows = plain(report.crash(shown, FixedAnswers())).splitlines()
    assert rows[1].split()[:3] == ["in", "worker.Conn.close", "worker.zig:1210:9"]
    assert "worker.processHTTPData" in rows[2]


def _stack(*frames: SourceFrame) -> list[str]:
    return [" ".join(row.split()) for row in plain(report._stack(list(frames))).splitlines()]


LIBC = "/usr/lib/x86_64-linux-gnu/libc.so.6"


def test_a_step_begins_with_the_programs_own_frame() -> None:
    own = SourceFrame(2, "processHTTPData", "/src/worker.zig", 859, 9)
    assert _stack(SourceFrame(1, "close", module=LIBC), own) == [
        "in processHTTPData worker.zig:859:9 through close"
    ]
    linked_in = SourceFrame(1, "close_internal")  # of a static library without lines
    assert _stack(linked_in, own) == ["in processHTTPData worker.zig:859:9 through close_internal"]
    brought_along = SourceFrame(1, "posix.close", "/src/http.zig/src/posix.zig", 180, 37, True)
    assert _stack(SourceFrame(0, "close", module=LIBC), brought_along, own) == [
        "in processHTTPData worker.zig:859:9 through posix.close"
    ]
    rust = SourceFrame(1, "drop", "/rustc/90b3/library/std/src/os/fd/owned.rs", 10, 0, True)
    assert _stack(rust, own) == ["in processHTTPData worker.zig:859:9 through drop"]


def test_where_all_is_in_shared_objects_the_wrapper_does_not_come_first() -> None:
    loop = SourceFrame(2, "loop_close", "loop.c", 7, 0, module="/srv/libloop.so")
    assert _stack(SourceFrame(1, "close", module=LIBC), loop) == ["in loop_close loop.c:7 through close"]


def test_a_wrapper_alone_says_that_its_caller_is_not_known() -> None:
    first, second = _stack(SourceFrame(1, "close", module=LIBC))
    assert first.startswith("in close")
    assert "its caller in the program is not known" in second


def _moved(ranges: list[list[int]]) -> Scene:
    """The destroy's probe lies at 0x1001000, in code of the line before the instance's call."""
    site = PLAN["sites"][0] | {"ranges": ranges}
    scene = Scene()
    for event in (replace(ATTACHED, plan=PLAN | {"sites": [site]}), *WITNESSES[1:], BATCH):
        scene.feed(event)
    return scene


class Moved(FixedAnswers):
    """What the two places of `_moved` are in the source."""

    def answer(self, question: Question) -> Answer | None:
        if question.args == (0x1001000,):
            return {"frames": [["worker.NonBlocking.disown", "/src/worker.zig", 797, 3, False]]}
        if question.args == (0x1001020,):
            name = "heap.memory_pool.Extra(worker.Conn(poolserver.NoWebsocket),.{}).destroy"
            return {
                "frames": [
                    ["mem.set", "/opt/zig/lib/std/mem.zig", 9, 9, True],
                    [name, "/opt/zig/lib/std/heap/memory_pool.zig", 120, 9, True],
                    ["worker.NonBlocking.disown", "/src/worker.zig", 812, 9, False],
                ]
            }
        return super().answer(question)


@pytest.mark.parametrize("ranges", [[[0x1001020, 0x1001040]], []])
def test_a_probe_that_was_moved_is_shown_at_the_instances_call(ranges: list[list[int]]) -> None:
    destroyed = Actor(role="destroyed", moment=at(5, 4711, -1, 0x1001000))
    item = exhibit(finding(actors=(destroyed,)), _moved(ranges))
    text = plain(report.report(item, Moved()))
    assert "in         worker.NonBlocking.disown  worker.zig:812:9   through heap.memory_pool" in text
    assert ":797" not in text
    early = plain(report.early(item))
    assert "in         heap.memory_pool" in early
    assert "called at worker.zig:812:9" in early, "the line is the call's, not of the function that is named"


def test_before_symbols_are_asked_nothing_is_said_of_unknown_lines() -> None:
    item = exhibit(finding(actors=(Actor(role="destroyed", moment=at(5, 4711, -1, 0x1001000)),)), _moved([]))
    (step,) = item.steps
    assert step.site is not None
    item = replace(item, steps=(replace(step, site=step.site._replace(inlined=False, file="", line=0)),))
    (row,) = [row for row in plain(report.early(item)).splitlines() if " in  " in row]
    assert row.split() == ["in", "heap.memory_pool.Extra(…).destroy"]


def test_what_another_thread_put_off_takes_no_name_away(scene: Scene) -> None:
    """The kernel side cannot name the thread then; its name was read from /proc before."""
    assert scene.comm(PID, 4713)
    bad = life().bad_close(50)
    scene.feed(replace(bad, trigger=bad.trigger._replace(tgid=PID, tid=4713), comm=""))
    assert scene.comm(PID, 4713)


def test_the_role_of_a_thread_is_said_where_it_is_known(scene: Scene) -> None:
    assert [scene.thread_role(PID, tid) for tid in (4711, 4713)] == ["loop", "worker"]
    nobody = Scene()
    for event in WITNESSES:
        nobody.feed(event)
    assert nobody.thread_role(PID, 4713) == "thread"
    # a thread whose own call was noticed while it had a batch is a loop
    story = life()
    bad = story.bad_close(50)
    nobody.feed(replace(bad, trigger=bad.trigger._replace(tgid=PID, tid=4713), batch=7))
    nobody.feed(replace(bad, trigger=bad.trigger._replace(tgid=PID, tid=4714), batch=0))
    assert [nobody.thread_role(PID, tid) for tid in (4713, 4714)] == ["loop", "worker"]


UNWOUND_SITE = PLAN["sites"][0] | {"kind": "out-of-line", "call_site": None}


class Unwound(FixedAnswers):
    """A stack whose second frame the kernel's walk had passed over: one of three calls of its function."""

    def answer(self, question: Question) -> Answer | None:
        if question.kind != "unwind":
            return super().answer(question)
        mine = {"frames": [["conn_free", "/src/pool.c", 7, 1, False]]}
        caller = {
            "frames": [["hang_up", "/src/loop.c", 20, 5, False]],
            "others": [["/src/loop.c", 22], ["/src/loop.c", 31], ["bad"]],
        }
        path, identity = str(PLAN["image"]), str(PLAN["identity"])
        return {"stack": [[0x1001000, path, identity, mine], [0x1001222, path, identity, caller]]}


@pytest.mark.parametrize("at_entry", [False, True])
def test_a_line_that_the_stack_does_not_tell_is_one_of_several(at_entry: bool) -> None:
    """At a function's entry the return address is part of the stack's id: then it tells."""
    scene = Scene()
    sites = [UNWOUND_SITE | {"at_entry": at_entry}]
    scene.feed(replace(ATTACHED, plan=PLAN | {"sites": sites}))
    scene.feed(StackSeen(tgid=PID, id=9, pcs=(0x1001000,), registers={"rsp": 64}, memory=b"x" * 16))
    item = exhibit(finding(actors=(Actor(role="destroyed", moment=at(5, 4711, 9, 0x1001000)),)), scene)
    text = plain(report.report(item, Unwound()))
    told = "called by  hang_up  one of: loop.c:20, loop.c:22, loop.c:31" in text
    assert told is not at_entry
    assert ("loop.c:20:5" in text) is at_entry
    others = item.to_json(Unwound())["actors"][0]["frames"][1].get("others")
    assert others == (None if at_entry else [{"file": "/src/loop.c", "line": line} for line in (22, 31)])

# Owns `afterfree demo`: the bundled server with the bug, watched until it dies of it.
# Works from a source checkout only. Must not judge: it shows what the ordinary run finds.
from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import click

from agent.errors import DemoFailed, NoSuchTarget, PrerequisiteMissing
from agent.forensics.desk import BundleDone
from probes import children
from probes.errors import NoSuchProcess, TargetGoneWhileAttaching

_BUG = "dup-outlives-close"
_MODE = "ReleaseSafe"
_DEADLINE = 180.0  # of traffic: it ends when the server is dead, which takes a second
_PER_ATTACH = 20.0  # and as many times what attaching took: on an emulated machine minutes
_LAST_WORDS = 60.0  # for a server that prints its own stack, of its own debug information
_CLIENTS, _REQUESTS = 8, 25
_READY = re.compile(rb"ready port=(\d+) pid=(\d+)")


@click.command("demo", short_help="See a stale delivery proved before the server dies of it.")
def command() -> int:
    """Build a small epoll server that has the bug, attach to it, drive traffic, and show the stale
    delivery with all four actors before the server's own crash. Needs root and a source checkout."""
    from agent import report
    from agent.text import Printer, Span, line

    printer = Printer()

    def say(text: str) -> None:
        printer.lines([line(Span(f"demo: {text}", "label"))])

    _check_machine()
    say(f"building the bundled server ({_MODE}; the first time takes a while)")
    server = _build()
    with _running(server) as (process, port, errors):
        say(f"started {server.name} as process {process.pid} on port {port}; nothing in it is prepared")
        try:
            found, bundles, waited = _watch(process, port, say, printer)
        except (NoSuchTarget, NoSuchProcess, TargetGoneWhileAttaching) as error:
            raise _gone(process, errors) from error
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_LAST_WORDS if found else 0.1)
        said = _last_words(errors)
    if not found:
        raise DemoFailed(
            "no stale delivery was found",
            detail=f"within {waited:.0f} s of traffic. The server's last words:\n" + "\n".join(said[-6:]),
            causes=("probes are missing on this machine", "the machine is very slow"),
            remedy="afterfree doctor\nafterfree demo",
        )
    if said:
        say("and only then, the server's own last words:")
        printer.lines([line("  ", text) for text in said[:12]])
    else:
        say("the server has survived it this time; the finding stands")
    for done in bundles:
        say("what afterfree kept of the crash says why:")
        printer.lines(report.bundle(done))
    return 0


def _gone(process: subprocess.Popen[bytes], errors: IO[bytes]) -> DemoFailed:
    """It ended before it was watched, and so before there was any traffic."""
    process.kill()  # where it has ended already, nothing
    code = process.wait()
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
    return DemoFailed(
        "the bundled server ended before it was watched",
        detail="\n".join([f"It {how}.", *_last_words(errors)[-6:]]),
        causes=("it was built on another machine, for instructions that this processor lacks",)
        if code == -signal.SIGILL
        else ("somebody ended it",),
        remedy="make clean demo",
    )


def _check_machine() -> None:
    from probes import preflight

    failed = [check for check in preflight.checks(attaching=False) if check.required and not check.ok]
    if failed:
        raise PrerequisiteMissing(
            "the demonstration cannot attach here",
            detail="\n".join(f"{check.name}: {check.detail}" for check in failed),
            remedy="\n".join(dict.fromkeys(check.remedy for check in failed if check.remedy))
            or "afterfree doctor",
        )


def _build() -> Path:
    root = children.ROOT
    if not (root / "tests" / "targets" / "build.py").is_file():
        raise DemoFailed(
            "the demonstration works from a source checkout only",
            detail="The bundled server is not part of an installed package.",
            remedy="clone the repository, then: make demo",
        )
    result = subprocess.run(
        children.command("tests.targets.build", "poolserver", _MODE),
        cwd=root,
        env=children.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    path = Path(result.stdout.strip().splitlines()[-1]) if result.stdout.strip() else None
    if result.returncode != 0 or path is None or not path.is_file():
        raise DemoFailed(
            "the bundled server cannot be built",
            detail="\n".join(result.stderr.strip().splitlines()[-8:]),
            causes=("the Zig compiler is not installed in this environment",),
            remedy="make setup",
        )
    return path


@contextlib.contextmanager
def _running(server: Path) -> Iterator[tuple[subprocess.Popen[bytes], int, IO[bytes]]]:
    """(process, port, file with its standard error), ended at exit whatever happened."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [str(server), "--port", "0", "--bug", _BUG, "--duration-s", "1800"],
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
        try:
            yield process, _port(process), errors
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(3)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            if process.stdout is not None:
                process.stdout.close()


def _port(process: subprocess.Popen[bytes]) -> int:
    """Wait for the server's ready line."""
    assert process.stdout is not None
    output, end = b"", time.monotonic() + 120
    while time.monotonic() < end:
        if select.select([process.stdout], [], [], 0.2)[0]:
            data = os.read(process.stdout.fileno(), 4096)
            if not data:
                break
            output += data
            match = _READY.search(output)
            if match:
                return int(match.group(1))
    raise DemoFailed(
        "the bundled server did not start",
        detail=output.decode("utf-8", "replace")[-400:],
        remedy="make clean demo",
    )


def _watch(
    process: subprocess.Popen[bytes], port: int, say: Callable[[str], None], printer: object
) -> tuple[bool, list[BundleDone], float]:
    """Attach, drive traffic, show what is found: (whether the stale delivery was proved, bundles, the limit
    for it in seconds)."""
    from agent import report
    from agent.commands import options as command_options
    from agent.commands.live import LiveOptions, attached
    from agent.correlator.core import Correlator
    from agent.correlator.findings import RuleId, Severity
    from agent.exhibit import Answers, CrashExhibit, Exhibit
    from agent.forensics.capture import CaptureControl, CaptureMode
    from agent.forensics.desk import CrashDesk
    from agent.forensics.store import BundleStore
    from agent.plan_text import plan_lines
    from agent.runner import EARLY, Runner
    from agent.sinks import brief
    from agent.summary import summary
    from agent.supervisor import Wanted
    from agent.symbolize import SymbolClient
    from agent.text import Printer
    from probes.capture.facts import CaptureOptions

    assert isinstance(printer, Printer)
    out = printer
    bundles: list[BundleDone] = []

    class Show:
        """The stale delivery in full, everything else in a line."""

        failures = 0
        told = 0  # findings and crashes that came early, and not yet with their symbols

        def early(self, item: Exhibit | CrashExhibit) -> None:
            self.told += 1
            if isinstance(item, CrashExhibit):
                out.lines(report.crash_early(item))
            else:
                out.lines(report.early(item) if self._whole(item) else [brief(item)])

        def finding(self, item: Exhibit, answers: Answers) -> None:
            if item.finding.update:
                return
            told = self._was_told()
            if self._whole(item):
                out.lines(report.report(item, answers, told=told))
            elif not told:
                out.lines([brief(item)])

        def crash(self, item: CrashExhibit, answers: Answers) -> None:
            out.lines(report.crash(item, answers, told=self._was_told()))

        def _was_told(self) -> bool:
            told, self.told = self.told > 0, max(0, self.told - 1)
            return told

        def _whole(self, item: Exhibit) -> bool:
            return item.finding.rule is RuleId.STALE_DELIVERY

        def bundle(self, done: BundleDone) -> None:
            bundles.append(done)

        def close(self) -> None:
            pass

    show = Show()
    store = BundleStore(Path(tempfile.mkdtemp(prefix="afterfree-demo-")))
    # from the start: the server dies within milliseconds of the first finding, and as soon as it is watched
    refused = threading.Event()  # as where a debugger has it
    capture = CaptureControl(
        store.folder, CaptureMode.ALWAYS, CaptureOptions(), on_notice=lambda _text: refused.set()
    )

    def held() -> bool:
        return process.pid in capture.seized or refused.is_set()

    desk = CrashDesk(store, configuration={"demo": True}, on_bundle=show.bundle, capture=capture)
    stop = command_options.stop()
    began = time.monotonic()
    options = LiveOptions(wanted=Wanted(pids=(process.pid,)))
    with (
        stop.installed(),
        contextlib.closing(SymbolClient()) as symbols,
        attached(options, symbols) as supervisor,
    ):
        say("the probe plan, read from its DWARF:")
        out.lines(plan_lines(supervisor.plans[-1], short=True))
        say("attached. Driving ordinary traffic, then one request whose socket gets dup'ed")
        limit = max(_DEADLINE, _PER_ATTACH * (time.monotonic() - began))
        traffic = threading.Thread(target=_traffic, args=(process, port, limit, held), daemon=True)
        traffic.start()
        outcome = Runner(
            supervisor,
            judge=Correlator(),
            symbols=symbols,
            sinks=[show],
            desk=desk,
            duration=limit,
            early=EARLY,
            stop=stop,
        ).run()
    out.lines(summary(outcome.stats, outcome.findings))
    if outcome.error is not None:
        raise outcome.error
    found = any(
        finding.rule is RuleId.STALE_DELIVERY and finding.severity is Severity.CRITICAL
        for finding in outcome.findings
    )
    return found, bundles, limit


def _traffic(process: subprocess.Popen[bytes], port: int, limit: float, held: Callable[[], bool]) -> None:
    """Ordinary requests, then the path with the bug, until the server is dead. held: whether its memory will
    be kept as it was when it died: waited for, because it dies sooner than a slow machine starts a process.

    The ordinary connections stay open: with no other slot free, the freed one ends the pool's free list,
    and its link reads as a null pointer, which is the crash this project began with.
    """
    end = time.monotonic() + limit
    while not held() and process.poll() is None and time.monotonic() < end - limit / 2:
        time.sleep(0.02)
    with contextlib.ExitStack() as stack:
        for _ in range(_CLIENTS):
            with contextlib.suppress(OSError):
                client = stack.enter_context(socket.create_connection(("127.0.0.1", port), 20))
                client.settimeout(20)
                for _ in range(_REQUESTS):
                    _exchange(client, b"GET / HTTP/1.1\r\nHost: demo\r\n\r\n")
        while process.poll() is None and time.monotonic() < end:
            _provoke(port)
            time.sleep(0.5)


def _provoke(port: int) -> None:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 2) as client:
        client.settimeout(2)
        _exchange(client, b"GET /dup HTTP/1.1\r\nHost: demo\r\n\r\n")
        # The server has answered, closed its fd and freed the slot. The dup'ed description is still
        # registered, so this byte makes epoll deliver an event for the freed slot.
        time.sleep(0.05)
        client.sendall(b"x")
        client.recv(4096)


def _exchange(client: socket.socket, request: bytes) -> None:
    client.sendall(request)
    client.recv(4096)


def _last_words(errors: IO[bytes]) -> list[str]:
    from agent.sanitize import printable

    errors.seek(0)
    lines = errors.read(1 << 16).decode("utf-8", "replace").splitlines()
    start = next((i for i, text in enumerate(lines) if "fault" in text.lower()), 0)
    return [printable(text, 160) for text in lines[start:]]

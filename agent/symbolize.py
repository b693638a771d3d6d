# Owns the daemon's side of symbols: questions to a short-lived child (symbolize_keeper.py),
# a bounded cache of answers. The daemon itself never loads DWARF readers: they cost 30 MB and more.
# Must not import what reads executables, nor block while the daemon judges (`resolve` and `settle` wait).
from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import time
from base64 import b64encode
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from agent.errors import PrerequisiteMissing, SymbolsFailed
from agent.sanitize import shell
from agent.snapshots import Snapshots
from probes import children
from symbols.keptplans import KeptPlans
from symbols.safefiles import existing

if TYPE_CHECKING:
    from probes.events import ModulesMapped

_MOST_ANSWERS = 8192
_MOST_PER_REQUEST = 64
_MOST_LINE = 32 << 20
_MOST_IMAGES = 512  # executables and what they load
_DEADLINE = 600.0  # seconds for one request; a large image is parsed within it
_PATIENCE = 900.0  # seconds for a plan, which somebody waits for: a large program on a very slow machine
_MOST_DEATHS = 3
_MOST_PROFILE = 1 << 20


class Question(NamedTuple):
    """What one report needs.

    kind "frames": args = (image address,); "memory": (type name, hex bytes);
    "unwind": (tgid, stack id, snapshots.fingerprint).
    """

    kind: str
    identity: str  # of the image, as its plan gives it
    args: tuple[str | int, ...]

    @property
    def key(self) -> str:
        """Canonical form: what the cache and a recording file it under."""
        return json.dumps([self.kind, self.identity, list(self.args)], separators=(",", ":"))


Answer = Mapping[str, Any]
"""{"frames": [[function, file, line, column, inlined], …]}, {"lines": […]}, {"reason": why not}, or
{"stack": [[run-time address, path and identity of its file, {"frames": …} or {"reason": …}], …]}."""

_MISSING_PROFILE = {"NoProfileMatch", "NoDestroySite", "ProfileError"}


def symbols_failed(kind: str, path: str, detail: str, remedy: str) -> SymbolsFailed:
    """The agent's form of a SymbolError (by class name), with likely causes and the next command."""
    titles = {
        "NotReadable": "cannot read the executable",
        "NotElf": "not an ELF executable",
        "NotAFile": "not a file",
        "NotACore": "not a core file",
        "PackedCore": "a compressed core file",
        "DamagedCore": "the core file is damaged",
        "UnreadableCore": "cannot read the core file",
        "CoreMismatch": "the core file does not belong to the executable",
        "WrongMachine": "an executable for another machine",
        "MalformedImage": "the executable is damaged",
        "NoDebugInfo": "the executable has no debug information",
        "DebugFileMismatch": "the debug file belongs to another build",
        "ProfileError": "the profile is not valid",
        "NoProfileMatch": "no profile fits this executable",
        "NoDestroySite": "the profile finds no place where slots are destroyed",
    }
    causes = {
        "NotElf": ("the path names a script or a wrapper; name the program it starts",),
        "NoDebugInfo": (
            "the executable was stripped (release builds and packages often are)",
            "it was built without -g (zig: -fstrip)",
        ),
        "NoProfileMatch": (
            "the server is not built on a framework that a shipped profile describes",
            "the pool's functions have other names in this version",
        ),
        "NoDestroySite": ("the function was renamed or optimised away in this build",),
        "WrongMachine": ("a container image or a cross build for another architecture",),
    }
    title = titles.get(kind, "the symbols cannot be resolved")
    next_steps = [remedy] if remedy else []
    if kind == "NoProfileMatch" and path:
        next_steps.append(f"afterfree symbols --suggest {shell(path)} > server.toml   (guesses a profile)")
    if kind in _MISSING_PROFILE:
        exe = "EXE" if kind == "ProfileError" or not path else shell(path)
        next_steps.append(f"afterfree symbols {exe} --profile FILE   (shows what a profile finds)")
    return SymbolsFailed(
        f"{title}: {path}" if path else title,
        detail=detail,
        causes=causes.get(kind, ()),
        remedy="\n".join(next_steps),
        kind=kind,
    )


class SymbolClient:
    """Asks the worker, which is started when there is a question and ended when it was idle.

    ask/pump/answer never block; every question gets an answer in the end, if only a reason.
    """

    def __init__(
        self,
        *,
        command: Sequence[str] = (),
        idle: float = 2.0,
        deadline: float = _DEADLINE,
        patience: float = _PATIENCE,
        stored: Mapping[str, Answer] | None = None,
        fresh: bool = False,
        on_notice: Callable[[str], None] = lambda _text: None,
        clock: Callable[[], float] = time.monotonic,
        kept: KeptPlans | None = None,
    ) -> None:
        """stored: answers of a recording, which come before the worker's. kept: plans that were resolved
        before, None for those of this machine. fresh: plans are resolved without
        the cache. on_notice: gets what is to be said of the worker, once. idle; deadline, of one request;
        patience, of one plan: seconds."""
        self._fresh = fresh
        self._plans_kept = kept or KeptPlans()
        self._command = list(command) or children.command("agent.symbolize_keeper")
        self._idle = idle
        self._deadline, self._patience = deadline, patience
        self._stored = dict(stored or {})
        self._clock = clock
        self._notice = on_notice
        self._said = False
        self._images: dict[str, list[str]] = {}
        self._plans: dict[str, Mapping[str, Any]] = {}
        self._debug: dict[str, str] = {}  # separate debug files, by identity of their image
        self._answers: OrderedDict[str, Answer] = OrderedDict()
        self._waiting: OrderedDict[str, Question] = OrderedDict()
        self._flying: list[Question] = []
        self._log: deque[tuple[Any, Answer]] = deque(maxlen=_MOST_ANSWERS)
        self.snapshots = Snapshots()
        self._worker: children.Child | None = None
        self._selector: selectors.BaseSelector | None = None
        self._buffer = bytearray()
        self._sent = 0.0
        self._used = 0.0
        self._deaths = 0

    def know_image(self, identity: str, paths: Iterable[str]) -> None:
        """Files in which the image of that identity may be found; the worker checks the identity."""
        known = self._images.setdefault(identity, [])
        while len(self._images) > _MOST_IMAGES:
            del self._images[next(iter(self._images))]
        for path in paths:
            if path and path not in known:
                known.append(path)
        del known[:-8]

    def know_plan(self, plan: Mapping[str, Any]) -> None:
        """The plan that an attached process has: memory is described by its slot's layout."""
        self._plans[str(plan.get("identity", ""))] = plan
        while len(self._plans) > _MOST_IMAGES:
            del self._plans[next(iter(self._plans))]

    def know_modules(self, event: ModulesMapped) -> None:
        """Files that a process has mapped: where their images may be found, and what unwinding needs."""
        self.snapshots.know_modules(event)
        for module in event.modules:
            if module.identity:
                self.know_image(module.identity, [module.path, f"/proc/{event.tgid}/root{module.path}"])

    def ask(self, question: Question) -> None:
        """Want an answer. Costs nothing when it is known or already asked."""
        key = question.key
        if key in self._answers or key in self._waiting or question in self._flying:
            return
        stored = self._stored.get(key)
        if isinstance(stored, Mapping):
            self._keep(question, stored)
        else:
            self._waiting[key] = question

    def answer(self, question: Question) -> Answer | None:
        """The answer, or None while it is under way."""
        return self._answers.get(question.key)

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._flying)

    def drain(self) -> list[tuple[Any, Answer]]:
        """(question, answer) pairs that are new since the last call, for the recording."""
        new = list(self._log)
        self._log.clear()
        return new

    def pump(self, timeout: float = 0.0) -> None:
        """Send what waits, take what has come; end an idle worker. Waits at most `timeout` seconds."""
        if not self._flying and self._waiting:
            self._send()
        if self._flying:
            self._receive(timeout)
            if self._flying and self._clock() - self._sent > self._deadline:
                self._lose(f"the symbol worker did not answer within our own limit of {self._deadline:.0f} s")
        elif self._worker is not None and self._clock() - self._used > self._idle:
            self.close()

    def settle(self, timeout: float) -> None:
        """Wait until everything asked is answered, at most `timeout` seconds; the rest gets a reason."""
        end = self._clock() + timeout
        while self.busy and self._clock() < end:
            self.pump(min(0.1, max(0.0, end - self._clock())))
        if self.busy:
            self._lose("afterfree ended before the symbol worker had answered")
            for question in list(self._waiting.values()):
                self._keep(question, {"reason": "afterfree ended before this could be asked"})
            self._waiting.clear()

    def resolve(
        self, image: str, profile: str | None = None, debug_file: str | None = None
    ) -> dict[str, Any]:
        """The probe plan of an executable as JSON (symbols.serial). Blocks. Raises SymbolsFailed."""
        key, known, text = self._kept(image, profile, debug_file)
        if known is not None:
            return known
        self.settle(self._deadline)
        request = {"do": "resolve", "image": image, "profile": profile, "debug": debug_file}
        if profile is not None:  # the worker may not be able to read it
            request["profile_content"] = b64encode(text).decode()
        reply = self._call({**request, "fresh": self._fresh})
        plan = reply.get("plan")
        if not isinstance(plan, dict):
            raise SymbolsFailed("the symbol worker gave no plan", detail=str(reply)[:300])
        if reply.get("kept") is True and key == self._kept(image, profile, debug_file)[0]:
            self._plans_kept.put(key, plan)
        if debug_file is not None:
            self._debug[str(plan.get("identity", ""))] = debug_file
        if reply.get("grown"):
            self._end_worker()  # what it took to resolve (25 MB), questions do not need
        return plan

    def _kept(
        self, image: str, profile: str | None, debug_file: str | None
    ) -> tuple[str, dict[str, Any] | None, bytes]:
        """(key of a plan that may be kept, or "", that plan, the profile's text). Raises SymbolsFailed."""
        text = _profile(profile) if profile is not None else b""
        if self._fresh or debug_file is not None:  # a named debug file is proven to belong to it every time
            return "", None, text
        key = self._plans_kept.key(image, (profile, text) if profile is not None else None)
        return key, self._plans_kept.get(key, image), text

    def begin(self, image: str, profile: str | None, debug_file: str | None) -> None:
        """Start the worker now where `resolve` will need it: it comes up while the caller does something
        else. Whoever asks first is told of a failure."""
        with contextlib.suppress(OSError, SymbolsFailed):
            if self._kept(image, profile, debug_file)[1] is not None:
                return
            self._start()
            self._used = self._clock()

    def hello(self) -> None:
        """Start the worker and let it load what it will need. Raises SymbolsFailed, PrerequisiteMissing."""
        self._call({"do": "hello"})

    def close(self) -> None:
        """End the worker. What is in flight gets a reason."""
        self._end_worker()
        if self._flying:
            flying, self._flying = self._flying, []
            for question in flying:
                self._keep(question, {"reason": "the symbol worker was ended"})

    # -- the pipe -----------------------------------------------------------------------------

    def _call(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """One blocking request outside of the question queue."""
        try:
            self._start()
            self._write(request)
        except OSError as error:
            raise self._worker_failed(self._unasked(error)) from error
        end = self._clock() + self._patience
        while self._clock() < end:
            line, alive = self._read_line(min(0.2, self._patience))
            if line is not None:
                self._used = self._clock()
                self._deaths = 0
                return self._checked(line)
            if not alive:
                raise self._worker_failed(self._epitaph())
        self._end_worker()
        raise self._worker_failed(
            f"it was ended because it gave no plan within our own limit of {self._patience:.0f} s",
            ("this machine is very slow, or under heavy load", "the executable leads it round in circles"),
        )

    def _parsed(self, line: bytes) -> Mapping[str, Any]:
        reply = _parse(line)
        lacks = reply.get("lacks")
        if lacks and isinstance(lacks, list) and not self._said:
            self._said = True
            self._notice(
                f"debug information is read with more rights than needed: {'; '.join(map(str, lacks))}"
            )
        return reply

    def _checked(self, line: bytes) -> Mapping[str, Any]:
        reply = self._parsed(line)
        error = reply.get("error")
        if isinstance(error, Mapping):
            kind = str(error.get("kind", ""))
            if kind == "ModuleNotFoundError":
                raise PrerequisiteMissing(
                    "a Python package is missing", detail=str(error.get("detail", "")), remedy="make setup"
                )
            raise symbols_failed(
                kind, str(error.get("path", "")), str(error.get("detail", "")), str(error.get("remedy", ""))
            )
        return reply

    def _worker_failed(self, detail: str, causes: tuple[str, ...] = ()) -> SymbolsFailed:
        return SymbolsFailed(
            "the symbol worker failed",
            detail=detail,
            causes=causes
            or (
                "the installation is damaged: then its last words name what is missing",
                "a SIGKILL that nobody sent is the kernel's, for lack of memory (dmesg)",
                "the executable is damaged in a way not foreseen",
            ),
            remedy="afterfree symbols EXE   (does the same step alone)\nAFTERFREE_DEBUG=1 afterfree …",
        )

    def _start(self) -> None:
        if self._worker is not None and self._worker.poll() is None:
            return
        self._end_worker()
        self._worker = children.Child(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            here=True,
            buffered=False,
            overheard=os.environ.get("AFTERFREE_DEBUG") == "1",
        )
        assert self._worker.stdout is not None
        os.set_blocking(self._worker.stdout.fileno(), False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._worker.stdout, selectors.EVENT_READ)
        self._buffer.clear()

    def _write(self, request: Mapping[str, Any]) -> None:
        if self._worker is None or self._worker.stdin is None:
            raise BrokenPipeError("the symbol worker is not running")
        # One request at a time, so the worker is reading: this cannot block on a full pipe for long.
        self._worker.stdin.write(json.dumps(request, separators=(",", ":")).encode() + b"\n")
        self._sent = self._used = self._clock()

    def _read_line(self, timeout: float) -> tuple[bytes | None, bool]:
        """(a whole line or None, whether the worker still lives)."""
        line = self._buffered_line()
        if line is not None:
            return line, True
        if self._worker is None or self._worker.stdout is None or self._selector is None:
            return None, False
        if not self._selector.select(timeout):
            return None, True
        while True:
            try:
                data = os.read(self._worker.stdout.fileno(), 1 << 16)
            except BlockingIOError:
                break
            if not data:
                return self._buffered_line(), False
            self._buffer += data
            if len(self._buffer) > _MOST_LINE:
                return None, False
        return self._buffered_line(), True

    def _buffered_line(self) -> bytes | None:
        end = self._buffer.find(b"\n")
        if end < 0:
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    # -- questions ----------------------------------------------------------------------------

    def _send(self) -> None:
        if self._deaths >= _MOST_DEATHS:
            reason = f"the symbol worker ended {self._deaths} times; it is not started again"
            for question in self._waiting.values():
                self._keep(question, {"reason": reason})
            self._waiting.clear()
            return
        first = next(iter(self._waiting.values()))
        batch = [q for q in self._waiting.values() if (q.kind, q.identity) == (first.kind, first.identity)]
        batch = batch[:_MOST_PER_REQUEST]
        for question in batch:
            del self._waiting[question.key]
        self._flying = batch
        request: dict[str, Any] = {
            "do": first.kind,
            "identity": first.identity,
            "args": [list(question.args) for question in batch],
        }
        wanted = {first.identity}
        if first.kind == "memory":
            request["plan"] = self._plans.get(first.identity)
        elif first.kind == "unwind":
            stacks = [self.snapshots.request(int(q.args[0]), int(q.args[1])) for q in batch]
            request["stacks"] = stacks
            wanted |= {str(row[4]) for stack in stacks if stack is not None for row in stack["modules"]}
        request["images"] = {one: self._images[one] for one in wanted if one in self._images}
        request["debug"] = {one: self._debug[one] for one in wanted if one in self._debug}
        try:
            self._start()
            self._write(request)
        except OSError as error:
            self._lose(self._unasked(error))

    def _receive(self, timeout: float) -> None:
        line, alive = self._read_line(timeout)
        if line is not None:
            self._take(line)
        elif not alive:
            self._lose(self._epitaph())

    def _take(self, line: bytes) -> None:
        reply = self._parsed(line)
        self._used = self._clock()
        answers = reply.get("answers")
        flying, self._flying = self._flying, []
        if isinstance(answers, list) and len(answers) == len(flying):
            self._deaths = 0
            for question, answer in zip(flying, answers, strict=True):
                self._keep(question, answer if isinstance(answer, dict) else {"reason": "no answer"})
            return
        error = reply.get("error")
        detail = str(error.get("detail", "")) if isinstance(error, Mapping) else ""
        for question in flying:
            self._keep(question, {"reason": detail or "the symbol worker's answer makes no sense"})

    def _lose(self, reason: str) -> None:
        self._deaths += 1
        flying, self._flying = self._flying, []
        self._end_worker()
        for question in flying:
            self._keep(question, {"reason": reason})

    def _keep(self, question: Question, answer: Answer) -> None:
        self._answers[question.key] = answer
        if len(self._answers) > _MOST_ANSWERS:
            self._answers.popitem(last=False)
        self._log.append(([question.kind, question.identity, list(question.args)], answer))

    def _unasked(self, error: OSError) -> str:
        """Why a request was not sent: of a worker that has ended already, how."""
        if isinstance(error, BrokenPipeError) and self._worker is not None:
            return self._epitaph()
        return f"the symbol worker could not be asked: {error.strerror or error}"

    def _epitaph(self) -> str:
        if self._worker is None:
            return "the symbol worker is not running"
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._worker.wait(1.0)
        if self._worker.returncode is None:
            return "the symbol worker sent too much"
        return f"the symbol worker {self._worker.ending()}\n{self._worker.last_words()}".strip()

    def _end_worker(self) -> None:
        worker, self._worker = self._worker, None
        if self._selector is not None:
            self._selector.close()
            self._selector = None
        if worker is None:
            return
        for pipe in (worker.stdin, worker.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            worker.wait(0.2 if worker.poll() is None else 0)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def _profile(path: str) -> bytes:
    """Raises SymbolsFailed."""
    try:
        with existing(path) as file:
            return file.read(_MOST_PROFILE + 1)
    except OSError as error:
        why = f"cannot be read ({error.strerror})"
        raise symbols_failed("ProfileError", path, why, "check the path") from error


def _parse(line: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}

"""Every bug switch in every build mode: what afterfree finds equals what the target knows it did.

The target's side table (tests/targets/README.md, "Truth file") is compared per rule and, where the
finding names a slot, per (slot address, generation). One line is printed per (switch, mode).
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agent.correlator.chain import Draft
from agent.correlator.core import Correlator, CorrelatorOptions
from agent.correlator.findings import Finding, RuleId, Severity
from probes.abi import Signature
from probes.session import SessionOptions
from tests.integration.harness import Run, Watch, conclude, drive, load, pump_until, watching

pytestmark = [pytest.mark.bpf, pytest.mark.slow]

MODES = ("ReleaseSafe", "ReleaseFast", "ReleaseSmall", "Debug")
CONNECTIONS = int(os.environ.get("AFTERFREE_CONNECTIONS", "10000"))  # fewer where a kernel is emulated
CORRECT_CONNECTIONS = 80_000
SATURATING_CONNECTIONS = 24_000
MAX_CONN = 256
# a busy machine may keep the reader away for a second, and nothing may be lost
OPTIONS = SessionOptions(lifetime_records=8192, urgent_pages=8192)
LEAK_AFTER_NS = 1_000_000_000  # the session names what has been closed for five seconds

Life = tuple[int, int]  # slot address, generation
Lives = Counter[Life]


class Ledger(Correlator):
    """The correlator, noting every occurrence it counts: groups show only the first slot of each."""

    def __init__(self, options: CorrelatorOptions | None = None) -> None:
        super().__init__(options)
        self.each: dict[tuple[RuleId, Severity], Lives] = {}

    def _group(self, finding: Draft, image: str, home: str | None = None) -> list[Finding]:
        lives = self.each.setdefault((finding.rule, finding.severity), Counter())
        lives[finding.slot, finding.generation] += finding.count
        return super()._group(finding, image, home)

    def lives(self, rule: RuleId, severity: Severity | None = None) -> Lives:
        total: Lives = Counter()
        for (named, level), lives in self.each.items():
            if named is rule and severity in (None, level):
                total.update(lives)
        return total


@dataclass(frozen=True)
class Case:
    """One row of tests/targets/README.md, or a combination of them, and the rules that must speak."""

    name: str
    bugs: tuple[str, ...]
    mix: str
    fires: tuple[RuleId, ...]
    server: tuple[str, ...] = ()
    client: tuple[str, ...] = ()
    concurrency: int = 32
    connections: int = CONNECTIONS
    until: tuple[RuleId, int] | None = None  # so many slots are named some time after the load
    victims: bool = False  # descriptors of others are closed: their counts are approximate in the truth


R = RuleId
SURVIVES = (R.DESCRIPTION_OUTLIVES_CLOSE, R.FREED_WHILE_REGISTERED, R.STALE_DELIVERY)
CASES = (
    Case("dup-outlives-close", ("dup-outlives-close",), "dup", SURVIVES, ("--every", "4")),
    Case("dup-outlives-close, mixed", ("dup-outlives-close",), "bugs", SURVIVES, ("--every", "2")),
    Case(
        "close-on-worker",
        ("close-on-worker",),
        "close",
        (R.IMPLICIT_REMOVAL, R.CLOSE_IN_OPEN_BATCH),
        ("--window-us", "50"),
    ),
    Case("close-on-worker, mixed", ("close-on-worker",), "correct", (R.IMPLICIT_REMOVAL,)),
    Case(
        "close-on-worker + dup",
        ("close-on-worker", "dup-outlives-close"),
        "dup",
        (R.DELIVERY_AFTER_CLOSE, R.DESCRIPTION_OUTLIVES_CLOSE),
        ("--dup-hold-ms", "0", "--window-us", "4000", "--workers", "8"),
        concurrency=64,
    ),
    Case("parse-error-no-del", ("parse-error-no-del",), "malformed", ()),
    Case(
        "parse-error-no-del + dup",
        ("parse-error-no-del", "dup-outlives-close"),
        "dup-malformed",
        SURVIVES,
        ("--every", "8"),
    ),
    Case(
        "free-in-batch",
        ("free-in-batch",),
        "poke",
        (R.FREED_IN_OPEN_BATCH,),
        ("--window-us", "300", "--workers", "8"),
        ("--slow-us", "1000"),
        concurrency=64,
    ),
    Case(
        "double-destroy",
        ("double-destroy",),
        "churn",
        (R.DOUBLE_DESTROY, R.ALIASED_SLOT),
        ("--every", "5"),
    ),
    Case("recycled", ("recycled",), "recycle", SURVIVES, ("--every", "4")),
    Case(
        "recycled, late ADD",
        ("recycled",),
        "recycle",
        (*SURVIVES, R.RECYCLED_DELIVERY),
        ("--every", "20", "--window-us", "3000"),
    ),
    Case("del-after-close", ("del-after-close",), "close", (R.FAILED_REMOVAL,), ("--every", "4")),
    Case("double-close", ("double-close",), "close", (R.BAD_CLOSE,), ("--every", "4")),
    Case(
        "double-close + close-on-worker",
        ("double-close", "close-on-worker"),
        "correct",
        (R.BAD_CLOSE, R.IMPLICIT_REMOVAL),
        ("--every", "20"),
        victims=True,
    ),
    Case(
        "drop-unregistered",
        ("drop-unregistered",),
        "close",
        (R.LEAKED_SLOT,),
        ("--every", "100", "--limit", "50"),
        until=(R.LEAKED_SLOT, 50),
    ),
    Case(
        "drop-registered",
        ("drop-registered",),
        "close",
        (R.HOT_REDELIVERY,),
        ("--every", "1000", "--limit", "4"),
        ("--timeout-ms", "1000"),
        until=(R.HOT_REDELIVERY, 4),
    ),
    Case(
        "stale-sweep",
        ("stale-sweep",),
        "timeout",
        (R.DOUBLE_DESTROY, R.FREED_WHILE_REGISTERED, R.STALE_DELIVERY),
        ("--keepalive-timeout-ms", "60", "--request-timeout-ms", "60", "--max-conn", "2000"),
        concurrency=512,
    ),
)


def _lives(truth: list[dict[str, Any]], value: Callable[[dict[str, Any]], int]) -> Lives:
    counted = ((life["slot"], life["generation"], int(value(life))) for life in truth if life.get("life"))
    return Counter({(slot, generation): count for slot, generation, count in counted if count})


EXACT: Mapping[RuleId, Callable[[dict[str, Any]], int]] = {
    R.STALE_DELIVERY: lambda life: life.get("stale_deliveries", 0),
    R.DOUBLE_DESTROY: lambda life: max(0, life.get("destroys", 0) - 1),
    # the rule is about registrations: two connections whose second ADD failed do not count
    R.ALIASED_SLOT: lambda life: life.get("aliased", False) and not life.get("add_errno"),
    R.FREED_WHILE_REGISTERED: lambda life: life.get("freed_while_registered", False),
    R.FREED_IN_OPEN_BATCH: lambda life: life.get("freed_in_batch", False),
    R.DESCRIPTION_OUTLIVES_CLOSE: lambda life: life.get("description_outlives_close", False),
    R.FAILED_REMOVAL: lambda life: life.get("failed_removals", 0),
    R.BAD_CLOSE: lambda life: life.get("bad_closes", 0),
    R.IMPLICIT_REMOVAL: lambda life: life.get("implicit_on_worker", False) and life.get("destroys", 0) > 0,
}
"""What each life of the truth file says, in units of the rule."""

BOUNDED: Mapping[RuleId, tuple[Callable[[dict[str, Any]], int], Callable[[dict[str, Any]], int]]] = {
    R.DELIVERY_AFTER_CLOSE: (
        lambda life: life.get("after_close", 0) > 0,
        lambda life: life.get("after_close_possible", 0) > 0,
    ),
    R.CLOSE_IN_OPEN_BATCH: (
        lambda life: life.get("close_in_batch", False),
        lambda life: life.get("close_in_batch_possible", False),
    ),
}
"""Lives for certain, and lives that are possible: only the kernel knows the order of the two calls."""

CALLS = {R.FAILED_REMOVAL, R.BAD_CLOSE}
"""The call's fd is all that is known for sure."""

WITHOUT_SLOT = {*CALLS, R.IMPLICIT_REMOVAL, *BOUNDED}
"""Calls, and lifetimes that are counted by signature: compared by number."""


@dataclass
class Comparison:
    wrong: list[str] = field(default_factory=list)
    line: list[str] = field(default_factory=list)
    differ: Lives = field(default_factory=Counter)  # of which the two sides say different things

    def number(self, rule: RuleId, ours: int, low: int, high: int) -> None:
        if not low <= ours <= high:
            known = f"{low}" if low == high else f"{low}..{high}"
            self.wrong.append(f"{rule}: found {ours}, truth {known}")
        if ours or high:
            self.line.append(f"{rule} {ours}/{low if low == high else f'{low}..{high}'}")

    def lives(self, rule: RuleId, ours: Lives, truth: Lives, spared: int = 0) -> None:
        """spared: how many lives may be missed."""
        self.differ |= (truth - ours) + (ours - truth)
        for word, these, free in (("missed", truth - ours, spared), ("invented", ours - truth, 0)):
            if these.total() > free:
                named = ", ".join(f"{slot:#x} gen {gen}: {n}" for (slot, gen), n in these.most_common(4))
                self.wrong.append(f"{rule}: {word} {these.total()} on {len(these)} lives ({named})")


def compare(
    case: Case,
    run: Run,
    ledger: Ledger,
    truth: list[dict[str, Any]],
    never: int = 0,
    unjudged: int = 0,
    swept: int = 0,
) -> Comparison:
    """never: removals that failed of what was never seen registered: counted, not raised.
    swept: closes of what was not open between closes of the numbers beside it: taken for a loop over all
    numbers, counted, not raised. A server that closes at random does so now and then.
    unjudged: frees within a batch that are counted as not judged. Those of a slot that was never registered,
    which another life's registration delivered, may be among them: only an ADD tells of its object.
    """
    outcome = Comparison()
    unjudged = min(
        unjudged,
        _lives(truth, lambda life: life.get("freed_in_batch", False) and not life.get("add_ns")).total(),
    )
    # The truth is of the destroy. We ask when the call is over: of these the duplicate was closed in between.
    ended = sum(
        row.count
        for row in run.correlator.census.rows()
        if row.signature & Signature.ORPHANED and not row.signature & Signature.REGISTERED
    )
    for rule, value in EXACT.items():
        known, ours = _lives(truth, value), run.count(rule)
        # Whose descriptor another one's second close hits, the truth knows approximately.
        spread = truth[-1]["wrong_closes"] if case.victims and rule is R.IMPLICIT_REMOVAL else 0
        if rule is R.FREED_WHILE_REGISTERED:
            outcome.number(rule, ours, known.total() - ended, known.total())
        elif rule is R.FREED_IN_OPEN_BATCH:
            outcome.number(rule, ours, known.total() - unjudged, known.total())
        elif rule is R.BAD_CLOSE:
            outcome.number(rule, ours, known.total() - min(swept, 1), known.total())
        elif rule is R.FAILED_REMOVAL:
            outcome.number(rule, ours, known.total() - never, known.total())
        else:
            outcome.number(rule, ours, max(0, known.total() - spread), known.total() + spread)
        if rule not in WITHOUT_SLOT and not case.victims:
            spared = {R.FREED_WHILE_REGISTERED: ended, R.FREED_IN_OPEN_BATCH: unjudged}.get(rule, 0)
            outcome.lives(rule, ledger.lives(rule), known, spared)
    for rule, (certain, possible) in BOUNDED.items():
        low, high = _lives(truth, certain).total(), _lives(truth, possible).total()
        outcome.number(rule, run.count(rule), low, high)
    _compare_recycled(outcome, ledger, truth)
    _compare_dropped(outcome, case, ledger, truth)
    known_rules = {*EXACT, *BOUNDED, R.RECYCLED_DELIVERY, R.LEAKED_SLOT, R.HOT_REDELIVERY}
    for finding in run.findings():
        if finding.rule not in known_rules and finding.severity > Severity.WARNING:
            outcome.wrong.append(f"{finding.rule}: {finding.count}, a rule the truth does not know")
    return outcome


def _compare_recycled(outcome: Comparison, ledger: Ledger, truth: list[dict[str, Any]]) -> None:
    """Critical ones never exceed the truth, on no life; critical and uncertain ones together cover it."""
    known = _lives(truth, lambda life: life.get("recycled_deliveries", 0))
    open_ = _lives(truth, lambda life: life.get("recycled_ambiguous", 0))
    certain = ledger.lives(R.RECYCLED_DELIVERY, Severity.CRITICAL)
    both = ledger.lives(R.RECYCLED_DELIVERY)
    if certain.total() > known.total():
        outcome.wrong.append(f"recycled-delivery: {certain.total()} certain, truth {known.total()}")
    if both.total() < known.total():
        outcome.wrong.append(f"recycled-delivery: truth {known.total()}, named {both.total()} in all")
    outcome.lives(R.RECYCLED_DELIVERY, certain, certain & (known + open_))
    if both or known:
        outcome.line.append(f"recycled-delivery {certain.total()}<={known.total()}<={both.total()}")


def _told(outcome: Comparison, truth: list[dict[str, Any]]) -> list[str]:
    """What the truth says of the first lives that differ."""
    rows = [
        life for life in truth if life.get("life") and (life["slot"], life["generation"]) in outcome.differ
    ]
    return [f"truth: {row}" for row in rows[:4]]


def _slots_of(ledger: Ledger, rule: RuleId) -> int:
    """Of leaks one finding counts all; of spins each slot has its own."""
    lives = ledger.lives(rule)
    return lives.total() if rule is R.LEAKED_SLOT else len(lives)


def _compare_dropped(outcome: Comparison, case: Case, ledger: Ledger, truth: list[dict[str, Any]]) -> None:
    closed = _lives(truth, lambda life: life.get("dropped", False) and life.get("closed", False))
    spinning = _lives(truth, lambda life: life.get("dropped", False) and not life.get("closed", False))
    leaked = ledger.lives(R.LEAKED_SLOT)
    if leaked or R.LEAKED_SLOT in case.fires:
        # how many there are, with one of them as the example
        outcome.number(R.LEAKED_SLOT, leaked.total(), closed.total(), closed.total())
        outcome.lives(
            R.LEAKED_SLOT, Counter(dict.fromkeys(leaked, 1)), Counter(dict.fromkeys(leaked, 1)) & closed
        )
    hot = ledger.lives(R.HOT_REDELIVERY)
    if spinning:
        # Deliveries are counted; the truth knows the lives.
        outcome.number(R.HOT_REDELIVERY, len(hot), len(spinning), len(spinning))
        outcome.lives(R.HOT_REDELIVERY, Counter(dict.fromkeys(hot, 1)), spinning)


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    def print_line(text: str) -> None:
        with capsys.disabled():
            print(f"\n  {text}", end="", flush=True)

    return print_line


@pytest.fixture(scope="module", params=MODES)
def watch(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    with watching(request.param, tmp_path_factory.mktemp("watched"), OPTIONS) as watch:
        yield watch


def _row(name: str, mode: str, connections: int, began: float, said: list[str]) -> str:
    return f"{name:31} {mode:12} {connections:7,} {time.monotonic() - began:5.1f} s  {'  '.join(said)}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", ""))
def test_findings_equal_the_truth(
    watch: Watch, case: Case, tmp_path: Path, say: Callable[[str], None]
) -> None:
    began = time.monotonic()
    bugs = [word for bug in case.bugs for word in ("--bug", bug)]
    ledger = Ledger(CorrelatorOptions(leak_after_ns=LEAK_AFTER_NS))
    run = Run(correlator=ledger)
    before = dict(watch.session.counters())
    with watch.target(tmp_path, run, *bugs, "--survive", *case.server) as target:
        client = load(
            target.port, case.mix, *case.client, connections=case.connections, concurrency=case.concurrency
        )
        drive(watch.session, run, client)
        if case.until is not None:
            rule, slots = case.until
            pump_until(watch.session, run, lambda: _slots_of(ledger, rule) >= slots, f"{slots} slots, {rule}")
        summary = conclude(watch.session, run, target)
        truth = target.truth()
    counted = {
        name: run.counters[name] - before[name] for name in run.counters if run.counters[name] != before[name]
    }
    outcome = compare(
        case,
        run,
        ledger,
        truth,
        counted.get("not_registered", 0),
        counted.get("not_judged", 0),
        counted.get("bad_closes", 0),
    )
    say(_row(case.name, watch.mode, summary["connections"], began, outcome.line))

    assert run.lost() == {}, f"events were lost, nothing can be compared: {run.lost()}"
    assert summary["overflow"] == summary["orphan_overflow"] == 0
    assert summary["connections"] >= CONNECTIONS
    assert not outcome.wrong, "\n".join(
        [
            f"{case.name}, {watch.mode}:",
            *outcome.wrong,
            f"counted: {counted}, dropped: {run.correlator.stats.dropped}",
            *_told(outcome, truth),
        ]
    )
    silent = [str(rule) for rule in case.fires if not run.count(rule)]
    audit = {name: count for name, count in run.counters.items() if name.startswith("audit_") and count}
    assert not audit, "what is believed of registrations and what the kernel answers differ"
    assert not silent, f"the switch was meant to raise {silent}: the test has proved nothing about them"


def test_nothing_is_found_in_a_correct_server(
    watch: Watch, tmp_path: Path, say: Callable[[str], None]
) -> None:
    """Every script of the load client, then more clients than the server takes."""
    began = time.monotonic()
    run, session = Run(), watch.session
    options = ("--max-conn", str(MAX_CONN), "--truth-detail", "all")
    with watch.target(tmp_path, run, *options) as target:
        drive(session, run, load(target.port, "correct", connections=CORRECT_CONNECTIONS))
        crowd = load(target.port, "saturate", connections=SATURATING_CONNECTIONS, concurrency=2 * MAX_CONN)
        drive(session, run, crowd)
        summary = conclude(session, run, target)
        slots = {line.split(b",", 2)[1] for line in target.truth_file.read_bytes().splitlines()[:-1]}
    findings = run.findings()
    said = [f"{finding.rule} {finding.count}" for finding in findings] or ["no finding"]
    said.insert(0, f"{len(slots)} slots")
    say(_row("correct", watch.mode, summary["connections"], began, said))

    assert run.lost() == {}
    audit = {name: count for name, count in run.counters.items() if name.startswith("audit_") and count}
    assert not audit, "what is believed of registrations and what the kernel answers differ"
    assert summary["overflow"] == 0
    assert summary["connections"] >= 100_000
    assert run.correlator.census.total == summary["destroyed"]
    assert len(slots) == MAX_CONN, "the server was never full"
    above = [finding for finding in findings if finding.severity > Severity.WARNING]
    assert not above, [f"{finding.rule} {finding.confidence} x{finding.count}" for finding in above]

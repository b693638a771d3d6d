# The census: human signatures, hazards, counts from either kind of source, widths, comparison.
from __future__ import annotations

import pytest

from agent.correlator.census import Census, compare, describe, hazards
from agent.correlator.histogram import Histogram
from probes.abi import Signature
from probes.events import LifetimesCounted
from tests.unit.agent.correlator.playbook import WORKER, life

KNOWN = Signature.WAITER_KNOWN


@pytest.mark.parametrize(
    ("signature", "steps", "hazard"),
    [
        (
            KNOWN | Signature.ADD | Signature.DELIVERED | Signature.CLOSE | Signature.CLOSE_OTHER,
            "ADD@loop · deliver · CLOSE@worker · DESTROY@loop",
            ("implicit-removal",),
        ),
        (
            KNOWN | Signature.ADD | Signature.DEL | Signature.CLOSE,
            "ADD@loop · DEL@loop · CLOSE@loop · DESTROY@loop",
            (),
        ),
        (
            KNOWN | Signature.ADD | Signature.CLOSE | Signature.CLOSE_OTHER | Signature.AFTER_CLOSE,
            "ADD@loop · CLOSE@worker · deliver-after-close · DESTROY@loop",
            ("delivery-after-close", "implicit-removal"),
        ),
        (
            KNOWN
            | Signature.ADD
            | Signature.ADD_OTHER
            | Signature.DEL
            | Signature.DEL_OTHER
            | Signature.CLOSE
            | Signature.DEL_AFTER_CLOSE,
            "ADD@worker · CLOSE@loop · DEL@worker (failed) · DESTROY@loop",
            ("failed-removal",),
        ),
        (
            KNOWN
            | Signature.ADD
            | Signature.CLOSE
            | Signature.CLOSE_OTHER
            | Signature.ORPHANED
            | Signature.REGISTERED
            | Signature.DESTROY_OTHER,
            "ADD@loop · CLOSE@worker (description lives on) · DESTROY@worker (registered)",
            ("freed-while-registered", "description-outlives-close"),
        ),
        (
            KNOWN
            | Signature.ADD
            | Signature.DEL
            | Signature.CLOSE
            | Signature.CLOSE_OTHER
            | Signature.CLOSE_IN_BATCH,
            "ADD@loop · DEL@loop · CLOSE@worker (in open batch) · DESTROY@loop",
            ("close-in-open-batch",),
        ),
        (
            KNOWN | Signature.ADD | Signature.DEL | Signature.CLOSE | Signature.ENDED_AFTER,
            "ADD@loop · DESTROY@loop · DEL@loop · CLOSE@loop",  # a destroy that itself removes and closes
            (),
        ),
        (
            KNOWN | Signature.ADD | Signature.CLOSE | Signature.ENDED_AFTER | Signature.REGISTERED,
            "ADD@loop · DESTROY@loop (registered) · CLOSE@loop",
            ("freed-while-registered",),
        ),
        (
            KNOWN | Signature.ADD | Signature.DELIVERED | Signature.DEL | Signature.NOT_JUDGED,
            "ADD@loop · deliver · DEL@loop · DESTROY@loop (in a batch, not judged)",
            (),
        ),
        (
            Signature.ADD | Signature.REGISTERED | Signature.NOT_JUDGED,
            "ADD@? · DESTROY@? (registered, in a batch, not judged)",
            ("freed-while-registered",),
        ),
        (
            Signature.INFERRED | Signature.ADD | Signature.CLOSE,
            "(before attach) · ADD@? · CLOSE@? · DESTROY@?",
            (),
        ),
        (0, "DESTROY@?", ()),
    ],
)
def test_signatures(signature: int, steps: str, hazard: tuple[str, ...]) -> None:
    assert describe(signature) == steps
    assert hazards(signature) == hazard


def test_decoded_lifetimes_are_counted_with_their_widths() -> None:
    census = Census()
    for width in (10, 20, 30):
        census.add(life().delivered(30).closed(40, WORKER).destroyed(40 + width).ended())
    census.add(life().removed(30).closed(40).destroyed(50).ended())
    first, second = census.rows()
    assert (first.count, first.share, first.hazard) == (3, 0.75, "implicit-removal")
    assert (first.close_to_destroy.min, first.close_to_destroy.max) == (10, 30)
    assert first.deliveries == (1, 1)
    assert (second.count, second.hazard, second.deliveries) == (1, "none", (0, 0))
    assert census.to_dict()["total"] == 4


def test_the_margin_is_of_deliveries_after_the_close() -> None:
    census = Census()
    census.add(life().delivered(30).closed(40).delivered(60).destroyed(75).ended())
    (row,) = census.rows()
    assert (row.margin.count, row.margin.max) == (1, 15)


def test_counts_replace_examples() -> None:
    example = life().closed(40).destroyed(50).ended()
    census = Census()
    census.add(example)
    census.add(LifetimesCounted(ts=1, counts={example.signature: 500, 7: 1}))
    census.add(example)
    assert [(row.count, row.examples) for row in census.rows()] == [(500, 2), (1, 0)]
    assert census.total == 501


def test_signatures_without_a_place_are_counted_as_other() -> None:
    census = Census(limit=2)
    census.add(LifetimesCounted(ts=1, counts=dict.fromkeys(range(5), 10)))
    assert (len(census), census.other, census.total) == (2, 30, 50)


def test_compare_shows_what_went_and_what_came() -> None:
    before, after = Census(), Census()
    hazard = life().closed(40, WORKER).destroyed(50).ended()
    harmless = life().closed(40).destroyed(50).ended()
    removed = life().removed(35).closed(40).destroyed(50).ended()
    before.add(LifetimesCounted(ts=1, counts={hazard.signature: 25, harmless.signature: 75}))
    after.add(LifetimesCounted(ts=1, counts={removed.signature: 50, harmless.signature: 50}))
    rows = compare(before.to_dict()["rows"], after.to_dict()["rows"])
    assert [(row.hazard, row.change, row.before, row.after) for row in rows] == [
        ("implicit-removal", "gone", 25, 0),
        ("none", "kept", 75, 50),
        ("none", "new", 0, 50),
    ]


def test_quantiles_are_within_an_eighth() -> None:
    histogram = Histogram()
    for value in range(1, 10_001):
        histogram.add(value)
    assert (histogram.min, histogram.max, histogram.count) == (1, 10_000, 10_000)
    assert 4375 <= histogram.quantile(0.5) <= 5000
    assert 8662 <= histogram.quantile(0.99) <= 9900
    assert histogram.quantile(1) == 10_000


def test_an_empty_histogram_and_negative_widths() -> None:
    histogram = Histogram()
    assert histogram.to_dict() == {"count": 0, "min": 0, "p50": 0, "p99": 0, "max": 0}
    histogram.add(-5)
    assert histogram.to_dict()["max"] == 0


def test_a_removal_that_failed_is_a_step() -> None:
    late = Signature.ADD | Signature.CLOSE | Signature.DEL_AFTER_CLOSE | Signature.WAITER_KNOWN
    assert describe(late) == "ADD@loop · CLOSE@loop · DEL@loop (failed) · DESTROY@loop"

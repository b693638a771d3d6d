"""Which slot a crash is about: several ways of the code, and what the open batch brought."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from agent.forensics.evidence import CrashEvidence, Fragments, OpenBatch
from agent.forensics.facts import Fault, Load
from agent.forensics.faultsite import Site
from agent.forensics.slots import Slots
from symbols.plan import SlotLayout, Userdata
from symbols.types import Type
from tests.unit.agent.correlator.playbook import LOOP, SLOT, WORKER, Life, life
from tests.unit.agent.forensics.test_explain import FAULT, LOAD, _evidence, _history

OTHER = SLOT + 0x100
POINTER = Type(name="*Object", kind="pointer", size=8, die=None)
OBJECT = Type(name="Object", kind="struct", size=64, die=None)
BATCH = 7


def _slots(evidence: CrashEvidence) -> Slots:
    """A slot is a pointer to its object at offset 0, and no variable leads anywhere."""
    view: Any = SimpleNamespace(
        evidence=evidence,
        plan=SimpleNamespace(
            slot=SlotLayout(
                type_name="Conn",
                size=64,
                freelist_offset=0,
                object_offset=0,
                object_field="object",
                object_type=None,
            ),
            userdata=Userdata(),
        ),
        variables=SimpleNamespace(pointee=lambda kind: OBJECT if kind is POINTER else None),
        in_scope=lambda _spot: [],
        read=evidence.memory.read,
        word=lambda address: _word(evidence, address),
    )
    parts = (SimpleNamespace(path=".object", offset=0, type=POINTER),)
    objects: Any = SimpleNamespace(parts=lambda _kind: parts)
    return Slots(view, objects, Type(name="Conn", kind="struct", size=64, die=None))


def _word(evidence: CrashEvidence, address: int) -> int | None:
    raw = evidence.memory.read(address, 8)
    return int.from_bytes(raw, "little") if raw is not None else None


def _site(fault: Fault = FAULT, **registers: int) -> Site:
    spot: Any = SimpleNamespace(frame=SimpleNamespace(registers=registers))
    return Site(fault, (spot,), None, None)


def _crash(story: Life | None = None, *told: Any, batch: int = BATCH) -> CrashEvidence:
    history = _history(story, *told) if story is not None else None
    memory = Fragments([(SLOT, bytes(64)), (OTHER, bytes(64))])
    return _evidence(history, memory=memory, batches=(OpenBatch(tid=LOOP, batch=batch, deliveries=()),))


def _load(address: int | None, agrees: bool | None = True) -> Load:
    return replace(LOAD, address=address, base_value=address, agrees=agrees)


@pytest.mark.parametrize(
    ("loads", "ways"),
    [
        ([_load(SLOT)], {"code"}),
        ([_load(SLOT), _load(SLOT)], {"code"}),
        ([_load(SLOT), _load(None, None)], {"one way"}),
        ([_load(SLOT), replace(_load(None, None), how="held at the function's entry")], {"one way"}),
        ([_load(SLOT), _load(OTHER)], {"one way"}),
        ([_load(SLOT), _load(OTHER, False)], {"one way"}),  # a null may have been overwritten since
    ],
    ids=["one", "twice", "unknown", "entry", "two", "another now"],
)
def test_a_slot_is_the_codes_where_all_ways_lead_there(loads: list[Load], ways: set[str]) -> None:
    found = _slots(_crash()).find(_site(), tuple(loads), ())
    assert found is not None
    assert (found.address, found.field, set(found.by)) == (SLOT, "object", ways)


@pytest.mark.parametrize("address", [0, 8, 0xFF8])
def test_nothing_is_loaded_from_below_one_page(address: int) -> None:
    assert _slots(_crash()).find(_site(), (_load(address, None),), ()) is None


def _stale() -> tuple[Life, Any, int]:
    """A life whose slot got an event after its end; the event; its batch."""
    story = life().added(10).closed(30).destroyed(50)
    told = story.stale_delivery(70)
    return story, told, _history(story, told).findings[0].batch


def test_what_the_open_batch_brought_outranks_a_guess() -> None:
    story, told, number = _stale()
    for loads in ((), (_load(OTHER), _load(None, None))):
        found = _slots(_crash(story, told, batch=number)).find(_site(), loads, ())
        assert found is not None
        assert (found.address, found.by[-1]) == (SLOT, "finding")
        assert found.field == "object"  # it holds the null that faulted


def test_what_the_code_shows_outranks_the_batch() -> None:
    story, told, number = _stale()
    found = _slots(_crash(story, told, batch=number)).find(_site(), (_load(OTHER),), ())
    assert found is not None
    assert (found.address, found.by) == (OTHER, ("code",))


@pytest.mark.parametrize("what", ["batch", "thread", "no batch"])
def test_another_batch_or_thread_says_nothing(what: str) -> None:
    story, told, number = _stale()
    evidence = _crash(story, told, batch=0 if what == "no batch" else number + (what == "batch"))
    fault = replace(FAULT, tid=WORKER) if what == "thread" else FAULT
    assert _slots(evidence).find(_site(fault), (), ()) is None

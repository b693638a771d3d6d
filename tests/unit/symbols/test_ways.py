"""Probes on the branches that lead to a place: which stand for it, and which would not say the same."""

from __future__ import annotations

from typing import cast

import pytest

from symbols.code import FunctionCode
from symbols.image import Image
from symbols.plan import Add, ArgSource, Deref, Price, Role
from symbols.resolve import resolve
from symbols.ways import Way, ways_to
from tests.unit.symbols.matrix import CASES

R14 = ArgSource(register="r14")
OF_RDI = ArgSource(register="rdi", steps=(Deref(8),))
LOW = 0x1000

# test esi, esi; je to 0x1009; call; mov r14, [rdi]; movzx eax, byte [r14 + 8]; ret
HEAD = "85f6 7405 e800000000"
LOAD, PLACE = "4c8b37", "410fb64608 c3"


class Bytes:
    """An image that is one function."""

    machine = "x86_64"

    def __init__(self, text: str) -> None:
        self._raw = bytes.fromhex(text)

    def code(self, address: int, count: int) -> bytes:
        return self._raw[address - LOW : address - LOW + count]


def code(text: str) -> FunctionCode:
    image = cast("Image", Bytes(text))
    return FunctionCode(image, [(LOW, LOW + len(bytes.fromhex(text)))])


def ways(text: str, place: int, source: ArgSource = R14, **options: int) -> list[Way] | None:
    return ways_to(code(text), place, source, {place}, **options)


def test_a_branch_stands_for_what_it_leads_to_with_its_flags_and_the_value_it_will_load() -> None:
    # the call's block ends
    assert ways(f"85f6 7406 e800000000 c3 {LOAD} {PLACE}", 0x100D) == [Way(0x1002, "e", OF_RDI)]


def test_the_way_that_falls_through_has_the_opposite_condition() -> None:
    # test esi, esi; jne behind it all
    assert ways(f"85f6 7509 {LOAD} {PLACE} c3", 0x1007) == [Way(0x1002, "e", OF_RDI)]


def test_every_way_has_a_branch_or_none_is_taken() -> None:
    # je to the load, else: mov eax, 1; jmp to the load
    both = f"85f6 7407 b801000000 eb00 {LOAD} {PLACE}"
    assert ways(both, 0x100E) == [Way(0x1002, "e", OF_RDI), Way(0x1009, "", OF_RDI)]
    # the other way comes from a call
    assert ways(f"{HEAD} {LOAD} {PLACE}", 0x100C) is None


def behind_a_jump(text: str) -> str:
    """0x1000: jmp to 0x1003; ret; 0x1003: the text."""
    return f"eb01 c3 {text}"


@pytest.mark.parametrize(
    ("between", "what"),
    [
        ("f0ff07", "lock inc [rdi]: another thread may be let in"),
        ("8707", "xchg [rdi], eax: the same"),
        ("50", "push rax: the frame is another one"),
        ("0f05", "syscall"),
        ("e800000000", "call"),
        ("4531f6", "xor r14d, r14d: where the value came from is not known"),
    ],
)
def test_what_may_not_run_in_between(between: str, what: str) -> None:
    size = len(bytes.fromhex(between))
    assert ways(behind_a_jump(f"{between} {PLACE}"), 0x1003 + size) is None, what


def test_moves_are_followed() -> None:
    moved = [Way(0x1000, "", ArgSource(register="rax"))]
    assert ways(behind_a_jump(f"4989c6 {PLACE}"), 0x1006) == moved  # mov r14, rax
    beside = [Way(0x1000, "", ArgSource(register="rdi", steps=(Add(8),)))]
    assert ways(behind_a_jump(f"4c8d7708 {PLACE}"), 0x1007) == beside  # lea r14, [rdi + 8]


def test_a_store_between_a_branch_and_a_value_in_memory() -> None:
    """It may be to that memory. mov [rdi], rdx."""
    assert ways(behind_a_jump(f"488917 {LOAD} {PLACE}"), 0x1009) is None
    assert ways(behind_a_jump(f"{LOAD} 488917 {PLACE}"), 0x1009) == [Way(0x1000, "", OF_RDI)]


def test_other_probes_on_the_way_keep_their_order() -> None:
    text = behind_a_jump(f"{LOAD} {PLACE}")
    assert ways_to(code(text), 0x1006, R14, set()) == [Way(0x1000, "", OF_RDI)]
    for other in (0x1000, 0x1003):
        assert ways_to(code(text), 0x1006, R14, {other}) is None


def test_a_search_would_hit_its_branch_for_every_element() -> None:
    # 1000: cmp rdi, r14; je to the place; mov rdi, [rdi]; jmp 1000; the place
    text = f"4c39f7 7405 488b3f ebf6 {PLACE}"
    assert ways(text, 0x100A) is None
    assert ways(text, 0x100A, shortest=4) == [Way(0x1003, "e", R14)]


def test_a_functions_entry_is_no_branch() -> None:
    assert ways(f"{LOAD} {PLACE}", 0x1003) is None


def test_a_jump_whose_targets_are_not_known_may_lead_to_any_label() -> None:
    assert ways(f"85f6 7406 e800000000 c3 {LOAD} {PLACE} ffe0", 0x100D) is None
    leaves = f"85f6 7406 e800000000 c3 {LOAD} {PLACE} 5b ffe0"  # pop rbx; jmp rax: a call at the end
    assert ways(leaves, 0x100D) == [Way(0x1002, "e", OF_RDI)]


def test_sites_of_a_real_program_move_and_are_told_as_their_places() -> None:
    case = CASES["clang++ templates -O3 -DINLINE_NOTES"]
    plan = resolve(case.build(), case.profile)
    moved = [site for site in plan.sites if site.stands_for is not None]
    assert {site.role for site in moved} == {Role.DESTROY, Role.DISPATCH}
    assert all(site.price is Price.EMULATED for site in moved)
    assert all(f"leads to {site.stands_for:#x}" in site.note for site in moved)
    assert plan.moved == {site.address: site.stands_for for site in moved}
    assert [site.index for site in plan.sites] == list(range(len(plan.sites)))

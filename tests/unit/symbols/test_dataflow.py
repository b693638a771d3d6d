"""Backward data flow over hand-assembled code, and the operands of instructions."""

from __future__ import annotations

import pytest

from symbols.access import access_at
from symbols.code import FunctionCode
from symbols.dataflow import How, Origin, Place, Tracer

BASE = 0x1000
MEMORY = {0x5008: 0, 0x6000: 0x5008, 0x7010: 0x5000, 0x7FF8: 0x5000}


class _Bytes:
    """As much of an Image as FunctionCode uses."""

    machine = "x86_64"

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def code(self, address: int, count: int) -> bytes:
        return self._raw[address - BASE : address - BASE + count]


def _code(text: str) -> FunctionCode:
    raw = bytes.fromhex(text)
    return FunctionCode(_Bytes(raw), [(BASE, BASE + len(raw))])  # type: ignore[arg-type]


def _read(address: int, count: int) -> bytes | None:
    value = MEMORY.get(address)
    return value.to_bytes(8, "little")[:count] if value is not None else None


def _origin(text: str, registers: dict[str, int], *, register: str = "rbx", value: int = 0) -> Origin:
    """The first origin of a register at the last instruction of the code."""
    code = _code(text)
    tracer = Tracer(code, BASE, registers, _read, 0)
    return tracer.origins(max(code.insns), Place(register), value)[0]


LAST = "8b83f8020000"  # mov eax, [rbx+0x2f8]


@pytest.mark.parametrize(
    ("text", "registers", "address", "base"),
    [
        ("488b5808 4885d2", {"rax": 0x5000}, 0x5008, "rax"),  # mov rbx,[rax+8]; test rdx,rdx
        ("488b5808 4883c00c", {"rax": 0x500C}, 0x5008, "rax"),  # …; add rax,12: taken back
        ("488b5808 488b07", {"rax": 0}, None, "rax"),  # …; mov rax,[rdi]: what rax had been is lost
        ("488b4f10 488b5908", {"rcx": 0x5000, "rdi": 0x7000}, 0x5008, "rcx"),  # through rcx
        ("488b4f10 488b4908 4889cb", {"rcx": 0, "rdi": 0x7000}, 0x5008, "rcx"),  # mov rcx,[rcx+8]; …
        ("488b4808 48894c2408 31c9 488b5c2408", {"rax": 0x5000, "rsp": 0x9000}, 0x5008, "rax"),  # parked
        ("c5fa6f4000 c5fa7f442410 488b5c2418", {"rax": 0x5000, "rsp": 0x9000}, 0x5008, "rax"),  # in xmm0
        ("90 488b1d01400000", {}, BASE + 8 + 0x4001, "rip"),
    ],
    ids=["plain", "advanced", "lost", "two loads", "overwritten", "parked", "vector", "rip"],
)
def test_a_load_is_found(text: str, registers: dict[str, int], address: int | None, base: str) -> None:
    found = _origin(text + LAST, registers)
    assert (found.how, found.address, found.base) == (How.LOAD, address, base)
    assert found.agrees is (True if address == 0x5008 else None)


def test_a_load_through_a_branch_names_both_sources() -> None:
    # mov rbx,[rax+8]; test; je +4 -> last; mov rbx,[rdi+16]; nop; last
    code = _code("488b5808 4885d2 7404 488b5f10" + LAST)
    tracer = Tracer(code, BASE, {"rax": 0x5000, "rdi": 0x7000}, _read, 0)
    found = tracer.origins(max(code.insns), Place("rbx"), 0)
    assert [(o.address, o.agrees) for o in found] == [(0x5008, True), (0x7010, False)]


# The load overwrote its own base register; what is left of it is elsewhere, or nowhere.
@pytest.mark.parametrize(
    ("text", "registers", "address"),
    [
        ("4889c7 488b4008", {"rdi": 0x5000}, 0x5008),  # mov rdi,rax; mov rax,[rax+8]
        ("488d7810 488b4008", {"rdi": 0x5010}, 0x5008),  # lea rdi,[rax+16]; …
        ("4889c7 488b4008 4883c708", {"rdi": 0x5008}, 0x5008),  # …; add rdi,8: taken back
        ("4889c7 488b4008 488b3e", {"rdi": 0x5000}, None),  # …; mov rdi,[rsi]: the copy is gone
        ("4889c7 7502 31ff 488b4008", {"rdi": 0x5000}, None),  # …; jne +2; xor edi,edi: on one of two ways
        # on both ways in there is a copy: jne +5; mov rdi,rax; jmp +3; mov rdi,rax
        ("7505 4889c7 eb03 4889c7 488b4008", {"rdi": 0x5000}, 0x5008),
        # two ways give other values: mov rax,[rdi+16]; jne +5; mov eax,0x6000
        ("488b4710 7505 b800600000 488b4008", {"rdi": 0x7000}, None),
        # two ways, one value: mov rax,[rdi+16]; jne +4; mov rax,[rdi+16]
        ("488b4710 7504 488b4710 488b4008", {"rdi": 0x7000}, 0x5008),
        # nothing was ever loaded from below one page: xor eax,eax
        ("31c0 488b4008", {}, None),
        # so that way was not taken: xor eax,eax; jne +3; mov rax,rdi
        ("31c0 7503 4889f8 488b4008", {"rdi": 0x5000}, 0x5008),
        ("31c0 7503 4889f8 488b4008 31ff", {"rdi": 0}, None),  # …; xor edi,edi
    ],
    ids=[
        "copied",
        "copied plus",
        "copy moved",
        "copy gone",
        "copy unsure",
        "both",
        "two",
        "agreed",
        "null",
        "one impossible",
        "one unknown",
    ],
)
def test_a_load_that_overwrote_its_own_base(
    text: str, registers: dict[str, int], address: int | None
) -> None:
    found = _origin(text + "8b80f8020000", registers | {"rax": 0}, register="rax")  # mov eax,[rax+0x2f8]
    assert (found.how, found.address, found.base) == (How.LOAD, address, "rax")
    assert found.agrees is (True if address is not None else None)
    assert found.base_value == (0x5000 if address is not None else None)


def test_a_way_that_would_have_left_the_value_elsewhere_was_not_taken() -> None:
    # mov rbx,rdi; test; je +3; mov rbx,[rax]: rdi is not the null that faulted
    code = _code("4889fb 4885ff 7403 488b18" + LAST)
    found = Tracer(code, BASE, {"rdi": 0x7000, "rax": 0x5008}, _read, 0).origins(
        max(code.insns), Place("rbx"), 0
    )
    assert [(origin.how, origin.address) for origin in found] == [(How.LOAD, 0x5008)]


def test_ways_that_are_not_followed_are_no_agreement() -> None:
    # nine ways to rbx, each a constant of its own: mov ebx comes last on each
    arms = "".join(f"7507 48c7c3{n:02x}000000" for n in range(12))
    code = _code(arms + LAST)
    found = Tracer(code, BASE, {}, _read, 0).origins(max(code.insns), Place("rbx"), 0)
    assert How.UNKNOWN in {origin.how for origin in found}


def test_two_registers_held_at_the_entry_are_two_origins() -> None:
    # mov rbx,rdi; jne +3; mov rbx,rsi
    code = _code("4889fb 7503 4889f3" + LAST)
    found = Tracer(code, BASE, {}, _read, 0).origins(max(code.insns), Place("rbx"), 0)
    assert sorted(str(origin.place) for origin in found) == ["rdi", "rsi"]


@pytest.mark.parametrize(
    ("text", "how", "value"),
    [
        ("31db", How.CONSTANT, 0),  # xor ebx,ebx clears all of rbx
        ("4831db", How.CONSTANT, 0),
        ("48c7c305000000", How.CONSTANT, 5),
        ("4885c0", How.ENTRY, None),
        ("e800000000 4889c3", How.CALL, None),
        ("480fafd8", How.COMPUTED, None),
    ],
    ids=["xor32", "xor", "mov", "entry", "call", "imul"],
)
def test_what_is_no_load_is_said(text: str, how: How, value: int | None) -> None:
    found = _origin(text + LAST, {"rax": 0})
    assert (found.how, found.value) == (how, value)


def test_constants_added_to_the_pointer_are_reported() -> None:
    # mov rbx,[rax+8]; add rbx,0x2f8; mov eax,[rbx]
    found = _origin("488b5808 4881c3f8020000 8b03", {"rax": 0x5000}, value=0x2F8)
    assert (found.address, found.plus, found.agrees) == (0x5008, 0x2F8, True)


def test_endless_loops_end() -> None:
    assert _origin("ebfe 90" + LAST, {}).how in (How.UNKNOWN, How.ENTRY)  # jmp to itself
    assert _origin("48ffc0 75fb" + LAST, {"rax": 1}).how is How.ENTRY  # inc rax; jne back


def test_the_operand_that_faulted() -> None:
    code = _code("8b83f8020000")
    access = access_at(code, BASE, {"rbx": 0}, 0x2F8)
    assert access is not None
    assert access.operand is not None
    assert (access.operand.base, access.operand.disp, access.operand.writes) == ("rbx", 0x2F8, False)
    assert access.operand.address == 0x2F8
    # movsq: two operands, the second one faults
    access = access_at(_code("48a5"), BASE, {"rsi": 0x5008, "rdi": 0x10}, 0x10)
    assert access is not None
    assert access.operand is not None
    assert (access.operand.base, access.operand.writes) == ("rdi", True)
    # no address from the kernel: the operand that is not canonical
    access = access_at(_code("48a5"), BASE, {"rsi": 0xAAAA_AAAA_AAAA_AAAA, "rdi": 0x5008}, None)
    assert access is not None
    assert access.operand is not None
    assert access.operand.base == "rsi"
    assert access_at(_code("90"), BASE, {}, None).operand is None  # type: ignore[union-attr]
    assert access_at(_code("90"), 0x9999, {}, None) is None

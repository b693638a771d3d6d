"""What a uprobe costs at an instruction, and where the kernel takes none."""

from __future__ import annotations

import pytest

from symbols.code import full_register, price, refused
from symbols.plan import Price

EMULATED = ["55", "4154", "90", "e800000000", "eb00", "e900000000", "7400", "0f8400000000"]
STEPPED = ["4889e5", "4883ec10", "488d0500000000", "c3", "8b00", "66e80000", "0f1f00", "ff10"]
REFUSED = ["f0480fb111", "cc", "f4", "62f1fd486f00", "2e8b00", "cd80", "e410"]


@pytest.mark.parametrize("code", EMULATED)
def test_emulated(code: str) -> None:
    assert price(bytes.fromhex(code)) is Price.EMULATED
    assert refused(bytes.fromhex(code)) is None


@pytest.mark.parametrize("code", STEPPED)
def test_single_stepped(code: str) -> None:
    assert price(bytes.fromhex(code)) is Price.SINGLE_STEP
    assert refused(bytes.fromhex(code)) is None


@pytest.mark.parametrize("code", REFUSED)
def test_refused(code: str) -> None:
    assert refused(bytes.fromhex(code))


def test_parts_of_registers() -> None:
    names = {"eax": "rax", "al": "rax", "ah": "rax", "ax": "rax", "sil": "rsi", "edi": "rdi", "r8d": "r8"}
    names |= {"r12b": "r12", "r15w": "r15", "rbx": "rbx", "bpl": "rbp", "esp": "rsp", "xmm0": "xmm0"}
    assert {name: full_register(name) for name in names} == names

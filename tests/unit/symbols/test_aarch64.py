"""Executables for aarch64, built by a cross compiler. The oracle is pyelftools' own walk of every entry: the
same instances, and at each site the argument in the register that DWARF says."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import pytest
from elftools.dwarf.locationlists import LocationParser
from elftools.elf.elffile import ELFFile

from agent.plan_text import plan_lines
from probes import loader
from probes.errors import WrongArchitecture
from symbols import arm64
from symbols.plan import ArgSource, InstanceKind, Price, ProbePlan, Role
from symbols.profile import Profile, parse_profile
from symbols.registers import AARCH64
from symbols.resolve import resolve
from symbols.serial import plan_to_json
from tests.unit.symbols.builds import C_PROFILE, ZIG_PROFILE, build_zig, cross_build_c


def _origin(die: Any) -> Any:
    for attribute in ("DW_AT_abstract_origin", "DW_AT_specification"):
        if attribute in die.attributes:
            return _origin(die.get_DIE_from_attribute(attribute))
    return die


def _name(die: Any) -> str:
    attributes = _origin(die).attributes
    found = attributes.get("DW_AT_linkage_name") or attributes.get("DW_AT_name")
    return found.value.decode() if found else ""


class View:
    """What pyelftools' walk of every entry says of some functions and variables."""

    def __init__(self, path: Path, functions: set[str], variables: set[str]) -> None:
        self.instances: dict[str, int] = dict.fromkeys(functions, 0)  # with code, out of line and inlined
        self._located: list[tuple[str, int, int, str]] = []
        with path.open("rb") as file:
            dwarf = ELFFile(file).get_dwarf_info()
            self._parser = LocationParser(dwarf.location_lists())
            for unit in dwarf.iter_CUs():
                low = unit.get_top_DIE().attributes.get("DW_AT_low_pc")
                for die in unit.iter_DIEs():
                    self._look(die, low.value if low is not None else 0, variables)

    def _look(self, die: Any, base: int, variables: set[str]) -> None:
        if die.tag in ("DW_TAG_subprogram", "DW_TAG_inlined_subroutine"):
            if die.attributes.keys() & {"DW_AT_low_pc", "DW_AT_ranges"} and _name(die) in self.instances:
                self.instances[_name(die)] += 1
        elif die.tag in ("DW_TAG_formal_parameter", "DW_TAG_variable") and "DW_AT_location" in die.attributes:
            if _name(die) not in variables:
                return
            attribute = die.attributes["DW_AT_location"]
            located = self._parser.parse_from_attribute(attribute, die.cu["version"], die)
            for row in located if isinstance(located, list) else [located]:
                expr = bytes(getattr(row, "loc_expr", b""))
                if len(expr) != 1 or not 0x50 <= expr[0] <= 0x6F:
                    continue
                low, high = getattr(row, "begin_offset", 0), getattr(row, "end_offset", 1 << 64)
                shift = 0 if getattr(row, "is_absolute", True) else base
                self._located.append(
                    (_name(die), low + shift, high + shift, AARCH64.registers[expr[0] - 0x50])
                )

    def registers(self, variable: str, address: int) -> set[str]:
        """Registers in which a variable of that name is at an address."""
        return {reg for name, low, high, reg in self._located if name == variable and low <= address < high}


def check(path: Path, profile: Profile, *, described: set[Role]) -> ProbePlan:
    """Every instance has a site or a reason; sites of `described` roles read what pyelftools finds there."""
    plan = resolve(path, profile)
    assert plan.machine == "aarch64"
    view = View(path, {site.function for site in plan.sites}, {site.argument for site in plan.sites})
    for role in Role:
        names = {site.function for site in plan.by_role(role)}
        probed = {site.call_site or site.declared_at for site in plan.by_role(role)}
        lost = sum(one.role is role for one in plan.unprobed)
        assert len(probed) + lost == sum(view.instances[name] for name in names) > 0, role
    for site in plan.sites:
        if site.role in described:
            assert site.source.is_register, site
            assert site.source.register in view.registers(site.argument, site.address), site
    return plan


@pytest.mark.parametrize("level", ["-O1", "-O2"])
def test_optimized_c(level: str) -> None:
    plan = check(cross_build_c(level), parse_profile(C_PROFILE), described=set(Role))
    assert {site.kind for site in plan.by_role(Role.DESTROY)} == {InstanceKind.INLINED}
    assert not plan.unprobed


def test_unoptimized_c_takes_arguments_where_the_caller_put_them() -> None:
    plan = check(cross_build_c("-O0"), parse_profile(C_PROFILE), described=set())
    sources = {site.role: site.source for site in plan.sites}
    assert sources == {
        Role.CREATE: ArgSource(register="x0"),
        Role.DESTROY: ArgSource(register="x1"),
        Role.DISOWN: ArgSource(register="x1"),
        Role.DISPATCH: ArgSource(register="x0"),
    }
    assert not plan.unprobed


def test_zig() -> None:
    described = {Role.DESTROY, Role.DISPATCH}
    plan = check(build_zig("ReleaseSafe", machine="aarch64"), parse_profile(ZIG_PROFILE), described=described)
    assert not plan.unprobed
    assert len(list(plan.by_role(Role.DESTROY))) == 3
    assert plan.slot.object_field == "protocol.http"


def test_the_plan_is_shown_and_watching_it_here_is_refused() -> None:
    plan = resolve(cross_build_c("-O2"), parse_profile(C_PROFILE))
    text = "\n".join("".join(span.text for span in row) for row in plan_lines(plan_to_json(plan)))
    assert "aarch64" in text
    assert "conn = x19" in text
    if platform.machine() == "aarch64":
        pytest.skip("this is an aarch64 machine")
    with pytest.raises(WrongArchitecture) as wrong:
        loader.load(plan, image=plan.image, pids=(), options=loader.LoadOptions())
    assert "aarch64" in str(wrong.value)
    assert "afterfree symbols" in wrong.value.remedy


def test_what_is_not_looked_for_is_said() -> None:
    plan = resolve(cross_build_c("-O2"), parse_profile(C_PROFILE))
    assert any("x86-64 only" in warning for warning in plan.warnings)


PROBES = {  # word: (assembly, None: refused, else its price)
    "fd7bbfa9": Price.SINGLE_STEP,  # stp x29, x30, [sp, #-16]!
    "5f2403d5": Price.SINGLE_STEP,  # bti c
    "3f2303d5": Price.SINGLE_STEP,  # paciasp
    "00000014": Price.EMULATED,  # b
    "00000094": Price.EMULATED,  # bl
    "40000054": Price.EMULATED,  # b.eq
    "400000b4": Price.EMULATED,  # cbz
    "4000b037": Price.EMULATED,  # tbnz
    "00003fd6": Price.EMULATED,  # blr x0
    "c0035fd6": Price.EMULATED,  # ret
    "00000090": Price.EMULATED,  # adrp
    "00000058": None,  # ldr x0, literal
    "0000001c": None,  # ldr s0, literal
    "ff0f5fd6": None,  # retab
    "200020d4": None,  # brk #1
    "010000d4": None,  # svc #0
    "007c5fc8": None,  # ldxr x0, [x0]
    "bf2303d5": None,  # autiasp
    "00421bd5": None,  # msr nzcv, x0
    "00000000": None,  # udf #0
}


@pytest.mark.parametrize("word", PROBES)
def test_what_the_kernel_does_with_a_probe(word: str) -> None:
    """arch/arm64/kernel/probes/decode-insn.c"""
    raw = bytes.fromhex(word)
    price = Price.EMULATED if arm64.simulated(raw) else Price.SINGLE_STEP
    assert (None if arm64.refused(raw) else price) is PROBES[word]


TERMS = {  # word: mnemonic, operands as (kind, name or value, bytes)
    "600240f9": ("mov", [("reg", "x0", 8), ("mem", "x19+0", 8)]),  # ldr x0, [x19]
    "e00700f9": ("mov", [("mem", "sp+8", 8), ("reg", "x0", 8)]),  # str x0, [sp, #8]
    "e00700b9": ("mov", [("mem", "sp+4", 4), ("reg", "x0", 4)]),  # str w0, [sp, #4]
    "60024039": ("movzx", [("reg", "x0", 4), ("mem", "x19+0", 1)]),  # ldrb w0, [x19]
    "7f0200f9": ("mov", [("mem", "x19+0", 8), ("imm", "0", 8)]),  # str xzr, [x19]
    "e00301aa": ("mov", [("reg", "x0", 8), ("reg", "x1", 8)]),
    "ff4300d1": ("sub", [("reg", "sp", 8), ("imm", "16", 8)]),
    "fd430191": ("lea", [("reg", "x29", 8), ("mem", "sp+80", 8)]),  # add x29, sp, #80
    "a04300d1": ("lea", [("reg", "x0", 8), ("mem", "x29+-16", 8)]),  # sub x0, x29, #16
    "fd7bbfa9": ("stp", [("reg", "x29", 8), ("reg", "x30", 8), ("mem", "sp+-16", 16)]),
    "e00741f8": ("mov", [("reg", "x0", 8), ("mem", "sp+0", 8)]),  # ldr x0, [sp], #16
}


@pytest.mark.parametrize("word", TERMS)
def test_instructions_in_the_terms_of_x86(word: str) -> None:
    detail = arm64.Decoder().detail(bytes.fromhex(word), 0x1000)
    assert detail is not None
    shown = []
    for operand in detail.operands:
        if operand.type == arm64.MEM:
            shown.append(("mem", f"{operand.mem.base}+{operand.mem.disp}", operand.size))
        elif operand.type == arm64.REG:
            shown.append(("reg", operand.reg, operand.size))
        else:
            shown.append(("imm", str(operand.imm), operand.size))
    assert (detail.mnemonic, shown) == TERMS[word]


def test_pre_and_post_indexing_move_the_base() -> None:
    decoder = arm64.Decoder()
    for word, moved in (("fd7bbfa9", -16), ("e00741f8", 16), ("e00f1ff8", -16)):
        detail = decoder.detail(bytes.fromhex(word), 0)
        assert detail is not None
        assert detail.moved == ("sp", moved)
        assert "sp" in detail.written


def test_flow_in_the_terms_of_x86() -> None:
    words = {"00000014": "jmp", "00000094": "call", "40000054": "je", "41000054": "jne", "4a000054": "jcc"}
    words |= {"400000b4": "je", "4000b037": "jne", "00001fd6": "jmp", "00003fd6": "call", "c0035fd6": "ret"}
    words |= {"200020d4": "ud2", "010000d4": "syscall", "ff0f5fd6": "ret"}
    for word, name in words.items():
        ((_at, _size, mnemonic, operands, _text),) = arm64.Decoder().sweep(bytes.fromhex(word), 0x1000)
        assert mnemonic == name, word
        if name in ("je", "jne", "jcc") or word in ("00000014", "00000094"):
            assert operands.startswith("0x1"), operands

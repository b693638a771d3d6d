"""The generated readers, compiled for the host and run: they give what DWARF's stack machine gives."""

from __future__ import annotations

import dataclasses
import platform
import random
import shutil
import subprocess
from pathlib import Path
from typing import cast

import pytest

from probes.readers import generate
from symbols.cfi_expr import evaluate
from symbols.data import Data
from symbols.dwarf import Part, Unit
from symbols.expressions import Place, Unsupported, to_source
from symbols.plan import Addr, ArgSource, EntrySite, Price, Role
from symbols.registers import CONDITIONS, REGISTERS
from tests.unit.probes.test_readers import plan, site

UNIT = Unit(0, 99, 5, 4, 8, 1, 12, {}, {}, Data(b"", 0, 0, ".debug_info", "none"), cast("Part", None))
BINARY = (0x1A, 0x1B, 0x1C, 0x1D, 0x1E, 0x21, 0x22, 0x24, 0x25, 0x26, 0x27, *range(0x29, 0x2F))
DEREFERENCES = (b"\x08\xf8\x1a\x76\x00\x22\x06", b"\x08\xf8\x1a\x76\x00\x22\x94\x02")  # of rbp + (v & 0xf8)
VALUES = (
    0,
    1,
    7,
    63,
    64,
    0x7FFF_FFFF,
    0x8000_0000,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
    0xDEAD_BEEF_0BAD_F00D,
)
MEMORY = bytes(random.Random(3).randbytes(512))

HARNESS = """
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
typedef uint64_t u64; typedef uint32_t u32; typedef uint16_t u16; typedef uint8_t u8;
typedef int64_t s64; typedef int32_t s32; typedef int16_t s16; typedef int8_t s8;
struct pt_regs { u64 ax, dx, cx, bx, si, di, bp, sp, r8, r9, r10, r11, r12, r13, r14, r15, ip, flags; };
#define AF_C_READ_FAULT 7
#define AF_FN static inline
static u64 result; static int faults; static u64 kept[2][2];
static void af_count(int which) { faults += which == AF_C_READ_FAULT; }
static unsigned char memory[512]; /* of the watched process, at 0x100000 */
static int bpf_probe_read_user(void *to, u32 size, void *from)
{
	memcpy(to, memory + ((u64)from - 0x100000), size);
	return 0;
}
static int af_hit_destroy(struct pt_regs *ctx, u64 ip, u64 v, u32 entry) { result = v; return 1; }
static int af_hand_on(struct pt_regs *ctx, int role, u64 ip, u64 v, u32 entry)
{
	return af_hit_destroy(ctx, ip, v, entry);
}
struct af_thread { u64 hit_ip; u64 hit_value; u32 hit_entry; };
static struct af_thread *af_thread_now(void) { return 0; }
static int af_hit_entry(struct pt_regs *ctx, u32 n, u64 cfa, u64 v)
{
	kept[n][0] = cfa;
	kept[n][1] = v;
	return 1;
}
static int show(int hit)
{
	if (hit)
		printf("%llx\\n", (unsigned long long)result);
	else
		puts("-");
	return hit;
}
static bool af_entered(u32 n, u64 cfa, u64 *v) { *v = kept[n][1]; return kept[n][0] == cfa; }
"""


def uleb(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out, value = out + bytes((value & 0x7F | 0x80,)), value >> 7
    return out + bytes((value,))


def expression(rng: random.Random) -> bytes:
    """A stack program over general registers, constants and dereferences that leaves one value."""
    out, depth = b"", 0
    for _ in range(rng.randint(1, 9)):
        choice = rng.random()
        if depth < 2 or choice < 0.3:
            number = rng.randrange(16)
            value = rng.choice(
                (b"\x10" + uleb(rng.choice(VALUES)), bytes((0x70 + number, rng.randrange(64))))
            )
            out, depth = out + value, depth + 1
        elif choice < 0.75:
            out, depth = out + bytes((rng.choice(BINARY),)), depth - 1
        elif choice < 0.85:
            out += rng.choice(DEREFERENCES)
        else:
            out += rng.choice((b"\x16", b"\x1f", b"\x20", b"\x23\x10"))
    return out + b"\x22" * (depth - 1)


def run(tmp: Path, text: str, main: str) -> list[str]:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("cc is not installed")
    divide = Path("probes/bpf/65-entries.c").read_text().split("/* DW_OP_div", 1)[1]
    source = tmp / "readers.c"
    divide = "/* DW_OP_div" + divide
    source.write_text(f"{HARNESS}{divide}{text}\nint main(void)\n{{\n{main}\n\treturn 0;\n}}\n")
    # BPF wraps around; C's signed shifts and divisions of extreme values must not be the compiler's to choose
    subprocess.run([compiler, "-w", "-fwrapv", "-mno-red-zone", "-o", tmp / "readers", source], check=True)
    return subprocess.run([tmp / "readers"], check=True, capture_output=True, text=True).stdout.splitlines()


def test_random_expressions(tmp_path: Path) -> None:
    rng = random.Random(11)
    registers = {name: rng.choice((*VALUES, rng.getrandbits(64))) for name in REGISTERS}
    registers["rbp"] = base = 0x10_0000

    def memory(address: int, size: int) -> bytes | None:
        at = address - base
        return MEMORY[at : at + size] if 0 <= at <= len(MEMORY) - size else None

    expected, sites = [], []
    while len(sites) < 150:
        expr = expression(rng)
        value = evaluate(expr, {n: registers[name] for n, name in enumerate(REGISTERS)}, memory)
        try:
            source = to_source(expr + b"\x9f", UNIT, Place())
        except Unsupported:
            continue
        if value is None and source.reads_memory():
            continue  # reads outside the little memory of this test
        expected.append(value)
        sites.append(site(len(sites), Role.DESTROY, source))
    assert sum(1 for s in sites if s.source.reads_memory()) > 10
    assert sum(1 for value in expected if value is None) > 0, "no division by zero among them"
    made = generate(plan(*sites))
    fields = ", ".join(f".{field} = {registers[name]:#x}ull" for name, field in _fields().items())
    data = "".join(f"\\x{byte:02x}" for byte in MEMORY)
    main = f'\tstruct pt_regs r = {{{fields}}};\n\tmemcpy(memory, "{data}", sizeof(memory));\n'
    calls = "\n".join(f"\tshow({name}(&r));" for _offset, name in made.programs)
    said = run(tmp_path, made.text, main + calls)
    assert said == ["-" if value is None else f"{value:x}" for value in expected]


def _fields() -> dict[str, str]:
    return {name: name if name[1:].isdigit() else name[1:] for name in REGISTERS}


def test_an_entry_value_is_the_one_of_the_same_frame(tmp_path: Path) -> None:
    rdi, rsp = ArgSource(register="rdi"), ArgSource(register="rsp")
    kept = EntrySite(
        index=0,
        function="finish",
        address=Addr(0x401000),
        file_offset=0x1000,
        instruction="push rbx",
        price=Price.EMULATED,
        value=rdi,
        frame=rsp,
    )
    inside = dataclasses.replace(site(0, Role.DESTROY, ArgSource(entry=rdi)), entry=0, frame=rsp)
    made = generate(dataclasses.replace(plan(inside), entries=(kept,)))
    (_, entry), (_, reader) = made.programs
    main = f"""
	struct pt_regs r = {{.di = 7, .sp = 0x7000}}, other = {{.di = 8, .sp = 0x6000}};
	{entry}(&r);
	r.di = 0;
	show({reader}(&r));
	show({reader}(&other));"""
    assert run(tmp_path, made.text, main) == ["7", "-"]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="asks the processor, an x86-64 one")
def test_conditions_are_those_of_the_processor(tmp_path: Path) -> None:
    """Every condition with every set of flags: the reader goes on where the processor's setcc gives 1."""
    conditions = [f"{no}{one}" for one in sorted(CONDITIONS) for no in ("", "n")]
    sites = [
        dataclasses.replace(site(n, Role.DESTROY, ArgSource(constant=1)), when=when)
        for n, when in enumerate(conditions)
    ]
    made = generate(plan(*sites))
    lines = ["\tstatic const u64 bits[] = {0x1, 0x4, 0x40, 0x80, 0x800};", "\tstruct pt_regs r = {};"]
    lines += ["\tfor (u32 set = 0; set < 32; set++) {", "\t\tu64 f = 0x202;", "\t\tu8 wanted;"]
    lines += ["\t\tfor (u32 i = 0; i < 5; i++)", "\t\t\tf |= set >> i & 1 ? bits[i] : 0;", "\t\tr.flags = f;"]
    for when, (_offset, name) in zip(conditions, made.programs, strict=True):
        asked = f'asm volatile("push %1; popfq; set{when} %0" : "=q"(wanted) : "r"(f) : "cc", "memory");'
        lines += [f"\t\t{asked}", f'\t\tprintf("{when} %d %d\\n", {name}(&r) != 0, wanted);']
    said = run(tmp_path, made.text, "\n".join([*lines, "\t}"]))
    assert len(said) == 32 * len(conditions)
    assert [line for line in said if len(set(line.split()[1:])) != 1] == []

# Owns the only generated C: one reader per distinct (role, argument source) of a plan.
# Everything else of the kernel side is in probes/bpf/*.c.
from __future__ import annotations

from dataclasses import dataclass

from probes.errors import Unsupported
from symbols.plan import Add, ArgSource, Deref, ProbePlan, Role

_REGISTERS = {
    "x86_64": {
        "rax": "ax", "rbx": "bx", "rcx": "cx", "rdx": "dx", "rsi": "si", "rdi": "di", "rbp": "bp",
        "rsp": "sp", "r8": "r8", "r9": "r9", "r10": "r10", "r11": "r11", "r12": "r12", "r13": "r13",
        "r14": "r14", "r15": "r15",
    },
}  # fmt: skip

MAX_READERS = 256
MAX_STEPS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Readers:
    """text: C source; programs: for each site of the plan (file offset, program name)."""

    text: str
    programs: tuple[tuple[int, str], ...]


def generate(plan: ProbePlan) -> Readers:
    """The argument readers of a plan. Raises Unsupported on a register or size that cannot be read."""
    registers = _REGISTERS.get(plan.machine)
    if registers is None:
        raise Unsupported(
            f"no argument readers for {plan.machine}",
            detail="live probing is for x86_64",
            remedy="watch the server on an x86_64 machine",
        )
    names: dict[tuple[Role, ArgSource], str] = {}
    parts: list[str] = []
    programs: list[tuple[int, str]] = []
    for site in plan.sites:
        key = (site.role, site.source)
        name = names.get(key)
        if name is None:
            name = f"af_site_{site.role.value}_{len(names)}"
            names[key] = name
            parts.append(_reader(name, site.role, site.source, registers))
        programs.append((site.file_offset, name))
    if len(names) > MAX_READERS:
        raise Unsupported(
            f"the plan needs {len(names)} argument readers, the limit is {MAX_READERS}",
            remedy="name fewer functions in the profile",
        )
    return Readers(text="\n".join(parts), programs=tuple(programs))


def _reader(name: str, role: Role, source: ArgSource, registers: dict[str, str]) -> str:
    lines = [f"int {name}(struct pt_regs *ctx)", "{"]
    if source.register is None:
        lines.append(f"\tu64 v = {source.constant & (1 << 64) - 1:#x}ull;")
    else:
        field = registers.get(source.register)
        if field is None:
            raise Unsupported(
                f"an argument lives in register {source.register!r}, which uprobes do not see",
                remedy="take the function out of the profile, or report the binary",
            )
        lines.append(f"\tu64 v = ctx->{field};")
    if len(source.steps) > MAX_STEPS:
        raise Unsupported(f"an argument needs {len(source.steps)} steps, the limit is {MAX_STEPS}")
    for step in source.steps:
        if isinstance(step, Add):
            lines.append(f"\tv += (u64)({step.amount}ll);")
        elif isinstance(step, Deref) and step.size in (1, 2, 4, 8):
            lines += [
                "\t{",
                f"\t\tu{step.size * 8} m = 0;",
                "\t\tif (bpf_probe_read_user(&m, sizeof(m), (void *)v)) {",
                "\t\t\taf_count(AF_C_READ_FAULT);",
                "\t\t\treturn 0;",
                "\t\t}",
                "\t\tv = m;",
                "\t}",
            ]
        else:
            raise Unsupported(f"an argument is read as {source}, which no reader can be made for")
    lines += [f"\treturn af_hit_{role.value}(ctx, v);", "}", ""]
    return "\n".join(lines)

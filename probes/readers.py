# Owns the only generated C: one reader per distinct way in which a plan's sites and entries take values.
# Everything else of the kernel side is in probes/bpf/*.c.
from __future__ import annotations

from dataclasses import dataclass

from probes.errors import Unsupported
from symbols.plan import LOAD_BIAS, MAX_STEPS, Add, Apply, ArgSource, Deref, Extend, Op, ProbePlan, Role, Site

_REGISTERS = {
    "x86_64": {
        "rax": "ax", "rbx": "bx", "rcx": "cx", "rdx": "dx", "rsi": "si", "rdi": "di", "rbp": "bp",
        "rsp": "sp", "r8": "r8", "r9": "r9", "r10": "r10", "r11": "r11", "r12": "r12", "r13": "r13",
        "r14": "r14", "r15": "r15", "pc": "ip",
    },
}  # fmt: skip
_U64 = (1 << 64) - 1

MAX_READERS = 256

HANDED = (Role.CREATE, Role.DESTROY, Role.DISPATCH)
"""Roles of which one program is verified, whatever number of readers of the argument hands on to it: each
costs the verifier 20 to 90 ms. By index in the map `hits`."""

_C = {
    Op.PLUS: "{a} + {b}",
    Op.MINUS: "{a} - {b}",
    Op.TIMES: "{a} * {b}",
    Op.AND: "{a} & {b}",
    Op.OR: "{a} | {b}",
    Op.XOR: "{a} ^ {b}",
    Op.SHIFT_LEFT: "{b} < 64 ? {a} << {b} : 0",
    Op.SHIFT_RIGHT: "{b} < 64 ? {a} >> {b} : 0",
    Op.SHIFT_RIGHT_SIGNED: "(u64)((s64){a} >> ({b} < 64 ? {b} : 63))",
    Op.MODULO: "{a} % {b}",
    Op.DIVIDE: "af_divide({a}, {b})",
    Op.EQUAL: "{a} == {b}",
    Op.UNEQUAL: "{a} != {b}",
    Op.LESS: "(s64){a} < (s64){b}",
    Op.LESS_OR_EQUAL: "(s64){a} <= (s64){b}",
    Op.GREATER: "(s64){a} > (s64){b}",
    Op.GREATER_OR_EQUAL: "(s64){a} >= (s64){b}",
}
_FLAGS = {  # Intel SDM volume 1, appendix B: OF is bit 11, SF 7, ZF 6, PF 2, CF 0
    "o": "ctx->flags & 0x800",
    "b": "ctx->flags & 0x1",
    "e": "ctx->flags & 0x40",
    "be": "ctx->flags & 0x41",
    "s": "ctx->flags & 0x80",
    "p": "ctx->flags & 0x4",
    "l": "(ctx->flags >> 7 ^ ctx->flags >> 11) & 1",
    "le": "(ctx->flags & 0x40) || ((ctx->flags >> 7 ^ ctx->flags >> 11) & 1)",
}
_OPPOSITES = {"ae": "b", "a": "be", "ge": "l", "g": "le"}
_BY_ZERO = (Op.MODULO, Op.DIVIDE)
_GIVE_UP = ("\t\taf_count(AF_C_READ_FAULT);", "\t\treturn 0;")


@dataclass(frozen=True, slots=True, kw_only=True)
class Readers:
    """text: C source; programs: (file offset, program name) of each probe, entries before sites."""

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
    bodies: dict[str, str] = {}  # equal bodies share one program
    programs: list[tuple[int, str]] = []
    for entry in plan.entries:
        reader = _Reader(registers, entry.address)
        frame, value = reader.value(entry.frame), reader.value(entry.value)
        body = reader.body(f"return af_hit_entry(ctx, {entry.index}, {frame}, {value});")
        name = bodies.setdefault(body, f"af_entry_{len(bodies)}")
        programs.append((entry.file_offset, name))
    shared = _shared(registers, plan)
    for site in plan.sites:
        body = _site_body(registers, site, shared)
        name = bodies.setdefault(body, f"af_site_{site.role.value}_{len(bodies)}")
        programs.append((site.file_offset, name))
    if len(bodies) > MAX_READERS:
        raise Unsupported(
            f"the plan needs {len(bodies)} argument readers, the limit is {MAX_READERS}",
            remedy="name fewer functions in the profile",
        )
    texts = [f"int {name}(struct pt_regs *ctx)\n{body}" for body, name in bodies.items()]
    texts += [_handler(role) for role in HANDED if role in shared]
    return Readers(text="\n".join(texts), programs=tuple(programs))


def _entry(role: Role, value: object) -> str:
    return f", {value}" if role in (Role.DESTROY, Role.DISPATCH) else ""


def _handler(role: Role) -> str:
    more = _entry(role, "t->hit_entry")
    return "\n".join(
        (
            f"int af_on_{role.value}(struct pt_regs *ctx)",
            "{",
            "\tstruct af_thread *t = af_thread_now();",
            f"\treturn t ? af_hit_{role.value}(ctx, t->hit_ip, t->hit_value{more}) : 0;",
            "}",
            "",
        )
    )


def _shared(registers: dict[str, str], plan: ProbePlan) -> frozenset[Role]:
    """Roles whose sites take their argument in several ways."""
    bodies: dict[Role, set[str]] = {}
    for site in plan.sites:
        bodies.setdefault(site.role, set()).add(_site_body(registers, site, frozenset()))
    return frozenset(role for role, found in bodies.items() if role in HANDED and len(found) > 1)


def _site_body(registers: dict[str, str], site: Site, shared: frozenset[Role]) -> str:
    reader = _Reader(registers, site.address)
    reader.only_when(site.when)
    if site.entry is not None and site.frame is not None:
        reader.take_entry(site.entry, site.frame)
    value, at, role = reader.value(site.source), "ctx->ip", site.role
    if site.stands_for is not None:
        at += f" + {(site.stands_for - site.address) & _U64:#x}ull"
    if role in shared:
        return reader.body(
            f"return af_hand_on(ctx, {HANDED.index(role)}, {at}, {value}, {int(site.at_entry)});"
        )
    return reader.body(f"return af_hit_{role.value}(ctx, {at}, {value}{_entry(role, int(site.at_entry))});")


class _Reader:
    """The statements of one reader."""

    def __init__(self, registers: dict[str, str], address: int) -> None:
        self._registers = registers
        self._address = address
        self._lines: list[str] = []
        self._count = 0

    def body(self, last: str) -> str:
        return "\n".join(("{", *self._lines, f"\t{last}", "}", ""))

    def only_when(self, condition: str) -> None:
        """Leaves the reader unless a jump with this condition would be taken."""
        if not condition:
            return
        plain = condition.removeprefix("n")
        opposite = _OPPOSITES.get(plain)
        test = f"({_FLAGS[opposite or plain]})"
        wanted = (opposite is None) == (plain == condition)
        self._lines += [f"\tif ({'!' if wanted else ''}{test})", "\t\treturn 0;"]

    def take_entry(self, index: int, frame: ArgSource) -> None:
        """Defines `entry`: what the call that is under way was entered with."""
        cfa = self.value(frame)
        self._lines += [
            "\tu64 entry = 0;",
            f"\tif (!af_entered({index}, {cfa}, &entry))",
            "\t\treturn 0;",
        ]

    def value(self, source: ArgSource) -> str:
        """Appends what evaluates a source; the name of the variable that holds it."""
        if source.weight() > MAX_STEPS:
            raise Unsupported(f"an argument needs {source.weight()} steps, the limit is {MAX_STEPS}")
        name = f"v{self._count}"
        self._count += 1
        self._lines.append(f"\tu64 {name} = {self._start(source)};")
        for step in source.steps:
            match step:
                case Add(amount):
                    self._lines.append(f"\t{name} += {amount & _U64:#x}ull;")
                case Deref(size) if size in (1, 2, 4, 8):
                    self._deref(name, size)
                case Extend(size, signed) if size in (1, 2, 4, 8):
                    self._lines.append(f"\t{name} = (u64)({'s' if signed else 'u'}{size * 8}){name};")
                case Apply(op, operand):
                    other = self.value(operand)
                    if op in _BY_ZERO:
                        self._lines += [f"\tif (!{other}) {{", *_GIVE_UP, "\t}"]
                    self._lines.append(f"\t{name} = {_C[op].format(a=name, b=other)};")
                case _:
                    raise Unsupported(f"an argument is read as {source}, which no reader can be made for")
        return name

    def _start(self, source: ArgSource) -> str:
        if source.entry is not None:
            return "entry"
        if source.register is None:
            return f"{source.constant & _U64:#x}ull"
        if source.register == LOAD_BIAS:
            return f"ctx->{self._registers['pc']} - {self._address:#x}ull"
        field = self._registers.get(source.register)
        if field is None:
            raise Unsupported(
                f"an argument lives in register {source.register!r}, which uprobes do not see",
                remedy="take the function out of the profile, or report the binary",
            )
        return f"ctx->{field}"

    def _deref(self, name: str, size: int) -> None:
        read = f"m{self._count}"
        self._count += 1
        self._lines += [
            f"\tu{size * 8} {read} = 0;",
            f"\tif (bpf_probe_read_user(&{read}, sizeof({read}), (void *){name})) {{",
            *_GIVE_UP,
            "\t}",
            f"\t{name} = {read};",
        ]

# Owns what a rule may know beside its evidence: the plan's gaps, lost windows, fdinfo answers, known slots.
# Plain memory; must not judge.
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent.correlator.bounded import BoundedMap
from agent.correlator.copies import replace
from probes.events import FdinfoChecked, Lost, SlotLife
from symbols.plan import Role

if TYPE_CHECKING:
    from agent.correlator.places import Places

_LINK_BYTES = 8
_UNDEFINED = 0xAA  # Zig's `undefined` in safe builds; destroy fills the slot with it (DESIGN section 5)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFacts:
    """What the rules need of symbols.serial.plan_to_json; every part of that JSON may be missing."""

    guard: str | None = None
    sites: Mapping[Role, int]  # probed instances
    unprobed: Mapping[Role, tuple[str, ...]]  # where each instance that could not be probed is
    freelist_offset: int | None = None
    slot_size: int = 0  # bytes; 0 unknown
    code: tuple[tuple[int, int], ...] = ()  # image addresses [start, end) of its executable segments
    counts: bool = False  # a destroy seems to count references down, and the profile names no count

    @classmethod
    def from_json(cls, plan: object) -> PlanFacts | None:
        """None when `plan` is not a plan at all (a recording may hold anything)."""
        if not isinstance(plan, Mapping) or not isinstance(plan.get("sites"), Sequence):
            return None
        sites = dict.fromkeys(Role, 0)
        unprobed: dict[Role, tuple[str, ...]] = dict.fromkeys(Role, ())
        counts = False
        seen = set()
        for site in plan["sites"]:
            role = _role(site)
            if role is not None:
                place = site.get("stands_for")
                sites[role] += place is None or (role, place) not in seen
                seen.add((role, place))
                counts = counts or bool(site.get("counts"))
        missing = plan.get("unprobed")
        for instance in missing if isinstance(missing, Sequence) else ():
            role = _role(instance)
            if role is not None:
                unprobed[role] += (str(instance.get("enclosing") or instance.get("function") or "?"),)
        slot = plan.get("slot")
        link = slot.get("freelist_offset") if isinstance(slot, Mapping) else None
        size = slot.get("size") if isinstance(slot, Mapping) else None
        guard = plan.get("guard")
        return cls(
            guard=str(guard) if guard else None,
            sites=sites,
            unprobed=unprobed,
            freelist_offset=link if isinstance(link, int) and link >= 0 else None,
            slot_size=size if isinstance(size, int) and size > 0 else 0,
            code=tuple(_segments(plan.get("segments"))),
            counts=counts and not (isinstance(slot, Mapping) and slot.get("count_offset") is not None),
        )

    def has(self, role: Role) -> bool:
        return self.sites[role] > 0

    def complete(self, role: Role) -> bool:
        return self.has(role) and not self.unprobed[role]

    def gap(self, role: Role) -> str:
        """A sentence on why the role is incomplete."""
        if not self.has(role):
            return f"the plan has no {role.value} site: a {role.value} is never seen"
        where = self.unprobed[role]
        total = len(where) + self.sites[role]
        return f"{len(where)} of {total} {role.value} instances cannot be probed (in {', '.join(where[:3])})"


def _segments(segments: Any) -> Iterator[tuple[int, int]]:
    for segment in segments if isinstance(segments, Sequence) else ():
        if isinstance(segment, Mapping) and segment.get("executable", True):
            start, size = segment.get("vaddr"), segment.get("memsz")
            if isinstance(start, int) and isinstance(size, int):
                yield start, start + size


def _role(value: Any) -> Role | None:
    try:
        return Role(value["role"])
    except (KeyError, TypeError, ValueError):
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    tgid: int
    image: str = ""  # the plan's identity, so that groups of different programs never meet
    bias: int = 0
    attached: int = 0  # ts
    plan: PlanFacts | None = None


class LossWindows:
    """When facts were lost. At most `limit` windows; the two nearest ones merge, so none is forgotten."""

    # Losses that cannot make an existing chain false: they cost findings or census entries (the names are
    # those of probes/session.py). The kernel side notices from its own maps, whatever the recorder lost.
    _HARMLESS = frozenset(
        {
            "urgent",
            "lifetimes",
            "recorder",
            "deliveries-beyond-limit",
            "suspicions-of-one-batch",
            "tail-call",
            "progress-not-watched",
            "processes-beyond-limit",
            "builds-not-watched",
            "slots-forgotten",
        }
    )

    def __init__(self, limit: int = 64) -> None:
        self._limit = max(1, limit)
        self._windows: list[tuple[int, int, str]] = []

    def __len__(self) -> int:
        return len(self._windows)

    def add(self, lost: Lost) -> None:
        if lost.count <= 0 or lost.what in self._HARMLESS:
            return
        self._windows.append((min(lost.since, lost.ts), lost.ts, lost.what))
        if len(self._windows) > self._limit:
            self._windows.sort()
            gaps = [b[0] - a[1] for a, b in zip(self._windows, self._windows[1:], strict=False)]
            at = gaps.index(min(gaps))
            first, second = self._windows[at], self._windows[at + 1]
            what = first[2] if first[2] == second[2] else "several"
            self._windows[at : at + 2] = [(first[0], max(first[1], second[1]), what)]

    def overlapping(self, start: int, end: int, ignoring: str = "") -> str | None:
        """What was lost somewhere in [start, end], or None."""
        for since, until, what in self._windows:
            if since <= end and start <= until and what != ignoring:
                return what
        return None


class FdinfoLog:
    """The latest answer of /proc/PID/fdinfo for each registration asked about."""

    def __init__(self, limit: int) -> None:
        self._answers: BoundedMap[tuple[int, int, int, int], FdinfoChecked] = BoundedMap(limit)

    def __len__(self) -> int:
        return len(self._answers)

    def add(self, check: FdinfoChecked) -> None:
        key = (check.tgid, check.epfd, check.fd, check.userdata)
        before = self._answers.get(key)
        if check.holders is None and before is not None and before.holders:
            check = replace(check, holders=before.holders)  # that is looked at now and then only
        self._answers.put(key, check)

    def present(self, key: tuple[int, int, int, int], since: int) -> bool | None:
        """Was (tgid, epfd, fd, userdata) registered when read at or after `since`? None: not known."""
        check = self._answers.get(key)
        if check is None or check.ts < since:
            return None
        return check.present

    def holders(self, key: tuple[int, int, int, int], since: int) -> tuple[tuple[int, int, str], ...] | None:
        """Who had the description open when that was looked at, at or after `since`; None: not looked at."""
        check = self._answers.get(key)
        return None if check is None or check.ts < since else check.holders


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Everything a rule may look at beside its evidence."""

    target: Target
    loss: LossWindows
    fdinfo: FdinfoLog
    places: Places
    known_slots: BoundedMap[tuple[int, int], None]
    leak_after_ns: int
    earlier_in_batch: int = 0  # recycled deliveries of this slot already judged in this batch

    @property
    def plan(self) -> PlanFacts | None:
        return self.target.plan

    @property
    def guard(self) -> str | None:
        return self.plan.guard if self.plan is not None else None

    def freed_memory(self, slot: SlotLife | None, memory: bytes) -> str | None:
        """A sentence when the slot's bytes are those of a freed pool node, else None.

        Layout: `freelist_offset` holds the link to the next free node; a safe build has filled the rest
        with 0xaa. A slot that was created and not yet written is 0xaa as well, but in the link too.
        """
        if slot is None:
            return None
        offset = self.plan.freelist_offset if self.plan is not None else None
        at = offset if offset is not None else 0
        if self.plan is not None and self.plan.slot_size:
            memory = memory[: self.plan.slot_size]  # what follows belongs to a neighbour
        word = memory[at : at + _LINK_BYTES]
        if len(word) < _LINK_BYTES:
            return None
        link = int.from_bytes(word, "little")
        rest = memory[:at] + memory[at + _LINK_BYTES :]
        # MemoryPool rounds its nodes up: two words of payload are the least that says anything.
        if link != 0xAAAA_AAAA_AAAA_AAAA and len(rest) >= 2 * _LINK_BYTES and _filled(rest):
            return "the slot's memory agrees: a free-list link followed by 0xaa, as destroy leaves it"
        if link == slot.addr:
            return "the slot's memory agrees: its free-list link points at itself"
        if link and (slot.tgid, link) in self.known_slots:
            return f"the slot's memory agrees: it begins with a free-list link to the slot at {link:#x}"
        return None


def _filled(rest: bytes) -> bool:
    return rest.count(_UNDEFINED) == len(rest)

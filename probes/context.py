# Owns what a report needs around a suspicion: stacks by id, thread names, and what fdinfo says of the
# registration. Yields each stack and each thread once, before the event that refers to it.
from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping

from probes import abi, events
from probes.events import MappedModule
from probes.helper import ProcHelper
from probes.sysbpf import Map

CONFIRMS_PER_SECOND = 20
HOLDERS_EVERY_S = 1.0  # and at most a fiftieth of the time
_LOWEST, _HIGHEST = 4096, 1 << 47  # nothing is mapped in the first page; x86-64 without LA57
LIBRARIES_FROM = 0x6000_0000_0000  # x86-64: mmap(2)'s area; executables lie below (ELF_ET_DYN_BASE)
READS_IN_A_SECOND = 5  # of a process's mappings
MAX_KNOWN = 16384  # stacks, and threads, that are remembered; later ones go without
_CONFIRMED_BY_FDINFO = frozenset(
    {
        abi.Suspect.FREED_REGISTERED,
        abi.Suspect.STALE_DELIVERY,
        abi.Suspect.RECYCLED_DELIVERY,
        abi.Suspect.OUTLIVES_CLOSE,
        abi.Suspect.HOT,
    }
)

PROCESS_EVERY_S = 60
_ENDED = 64
_FOREBODING = frozenset(
    {
        abi.Suspect.FREED_REGISTERED,
        abi.Suspect.STALE_DELIVERY,
        abi.Suspect.STALE_DISPATCH,
        abi.Suspect.RECYCLED_DELIVERY,
        abi.Suspect.DOUBLE_DESTROY,
        abi.Suspect.ALIASED_SLOT,
        abi.Suspect.FREED_IN_BATCH,
    }
)


def walked(raw: bytes) -> tuple[int, ...]:
    """Addresses of an entry of the stack map, as far as they can be code of user space.

    Where code is built without frame pointers, the kernel's walk goes astray on whatever rbp holds.
    """
    pcs = [pc for pc in memoryview(raw).cast("Q").tolist() if pc]
    astray = (index for index, pc in enumerate(pcs) if index and not _LOWEST <= pc < _HIGHEST)
    return tuple(pcs[: next(astray, len(pcs))])


class Context:
    """Answers from the stacks map and the helper process."""

    def __init__(
        self,
        stacks: Map,
        memory: Map,
        helper: ProcHelper,
        identity: str,
        names: Map | None = None,
        moved: Mapping[int, int] | None = None,
        spans: Map | None = None,
    ) -> None:
        """memory: the map of struct af_stack_bytes. identity: of the targets' executable. names: of threads
        that have ended. moved: ProbePlan.moved, for stacks to begin where the hits are told as. spans: where
        libraries lie (struct af_span)."""
        self._spans = spans
        self._names = names
        self._moved = moved or {}
        self._bias: dict[int, int] = {}  # tgid -> run-time address minus the image's own
        self._map, self._memory, self._helper, self._identity = stacks, memory, helper, identity
        self._mapped: dict[int, list[tuple[int, int]]] = {}  # tgid -> address ranges of its modules
        self._reads: dict[int, tuple[int, int]] = {}  # tgid -> second, times that they were read in it
        self._stacks: set[tuple[int, int]] = set()
        self._threads: set[tuple[int, int]] = set()
        self._confirms = (0, 0)  # second, checks made in it
        self._holders_from = 0.0  # when they may be looked for again
        self._ended: set[int] = (
            set()
        )  # targets that are gone: what was known of them goes with the next of these
        self._foreboded: dict[int, int] = {}  # tgid -> when its /proc was kept last, s

    def of_suspicion(self, suspicion: events.SuspicionRaised) -> Iterator[events.Event]:
        """The suspicion, preceded by the stacks, threads and fdinfo that its report will need."""
        trigger = suspicion.trigger
        moments = [events.Moment(0, trigger.ts, 0, trigger.tid, trigger.stack)]
        if suspicion.slot is not None:
            moments += self._of_slot(suspicion.slot)
        for reg in (suspicion.reg, suspicion.other):
            if reg is not None:
                moments += [reg.add, reg.mod, reg.end, reg.dup]
        yield from self._seen(trigger.tgid, moments)
        if suspicion.suspect in _CONFIRMED_BY_FDINFO and suspicion.reg is not None and self._may_confirm():
            yield self._confirm(trigger.tgid, suspicion.reg)
        yield suspicion
        yield from self._forebode(suspicion)

    def of_crash(self, crash: events.CrashSeen) -> Iterator[events.Event]:
        """The crash, preceded by the stacks and threads of its slots and what /proc still tells."""
        moments = [events.Moment(0, crash.ts, 0, crash.tid, crash.stack_id)]
        for held in crash.slots:
            moments += self._of_slot(held.slot)
            if held.reg is not None:
                moments += [held.reg.add, held.reg.mod, held.reg.end, held.reg.dup]
        process = self._process(crash.tgid)
        yield from self._seen(crash.tgid, moments)
        yield process
        yield crash

    def _process(self, tgid: int) -> events.ProcessCaptured:
        maps, threads, fdinfo = self._helper.process(tgid)
        return events.ProcessCaptured(
            ts=time.monotonic_ns(),
            tgid=tgid,
            maps=maps,
            threads=tuple(
                events.ThreadStatus(tid=tid, comm=comm, state=state) for tid, comm, state in threads
            ),
            fdinfo=fdinfo,
        )

    def _forebode(self, suspicion: events.SuspicionRaised) -> Iterator[events.Event]:
        """What /proc tells now, for the crash that may follow: a process without handler is gone at once."""
        tgid, now = suspicion.trigger.tgid, int(time.monotonic())
        if (
            suspicion.suspect in _FOREBODING
            and now - self._foreboded.get(tgid, -PROCESS_EVERY_S) >= PROCESS_EVERY_S
        ):
            self._foreboded[tgid] = now
            yield self._process(tgid)

    def of_life(self, slot: events.SlotLife) -> Iterator[events.Event]:
        yield from self._seen(slot.tgid, self._of_slot(slot))

    def of_records(self, records: Iterable[tuple[int, ...]]) -> Iterator[events.Event]:
        """Names of the threads that appear for the first time (tgid and tid stand at 6 and 7)."""
        for tgid, tid in sorted({(record[6], record[7]) for record in records} - self._threads):
            yield from self._thread(tgid, tid)

    @staticmethod
    def _of_slot(slot: events.SlotLife) -> list[events.Moment]:
        delivered = events.Moment(0, slot.last_delivery, 0, slot.last_tid, -1)
        return [
            slot.create,
            slot.add,
            slot.removed,
            slot.close,
            slot.destroy,
            slot.prev_destroy,
            delivered,
        ]

    def _seen(self, tgid: int, moments: Iterable[events.Moment]) -> Iterator[events.Event]:
        for moment in moments:
            if not moment.ts:
                continue
            stack, thread = (tgid, moment.stack), (tgid, moment.tid)
            if moment.stack >= 0 and stack not in self._stacks and len(self._stacks) < MAX_KNOWN:
                raw = self._map.get(moment.stack.to_bytes(4, "little"))
                if raw is not None:
                    self._stacks.add(stack)
                    pcs = walked(raw)
                    yield from self._newly_mapped(tgid, pcs)
                    registers, memory = self._bytes(moment.stack)
                    bias = self._bias.get(tgid, 0)
                    told = self._moved.get(pcs[0] - bias) if pcs else None
                    if told is not None:  # in the same frame: no stack pointer moves on the way
                        pcs = (told + bias, *pcs[1:])
                        registers = {**registers, "rip": pcs[0]} if registers else registers
                    yield events.StackSeen(
                        tgid=tgid, id=moment.stack, pcs=pcs, registers=registers, memory=memory
                    )
            if moment.tid and thread not in self._threads:
                yield from self._thread(tgid, moment.tid)

    def _bytes(self, stack: int) -> tuple[dict[str, int], bytes]:
        raw = self._memory.get(stack.to_bytes(4, "little"))
        if raw is None:
            return {}, b""
        kept = abi.StackBytes.from_buffer_copy(raw)
        return dict(zip(abi.STACK_REGISTERS, kept.regs, strict=True)), bytes(kept.bytes[: kept.nbytes])

    def of_target(self, tgid: int, bias: int | None = None) -> Iterator[events.Event]:
        """What is mapped in a process. bias: of the plan's image; None: as before."""
        if bias is not None:
            self._bias[tgid] = bias
        second, times = self._reads.get(tgid, (0, 0))
        now = int(time.monotonic())
        self._reads[tgid] = (now, times + 1 if second == now else 1)
        modules = self._helper.modules(tgid, self._identity)
        if modules is not None:
            self._mapped[tgid] = [(module.start, module.end) for module in modules]
            self._span(tgid, modules)
            yield events.ModulesMapped(ts=time.monotonic_ns(), tgid=tgid, modules=tuple(modules))

    def forget(self, tgid: int) -> None:
        self._mapped.pop(tgid, None)
        self._bias.pop(tgid, None)
        self._reads.pop(tgid, None)
        self._foreboded.pop(tgid, None)
        self._ended.add(tgid)
        if len(self._ended) > _ENDED:
            self._stacks = {known for known in self._stacks if known[0] not in self._ended}
            self._threads = {known for known in self._threads if known[0] not in self._ended}
            self._ended.clear()

    def _newly_mapped(self, tgid: int, pcs: tuple[int, ...]) -> Iterator[events.Event]:
        """Read the mappings again when an address lies outside of them: a process that has just begun maps
        its libraries after it was attached, others use dlopen(3). A few times a second at most."""
        ranges = self._mapped.get(tgid, [])
        if all(any(start <= pc < end for start, end in ranges) for pc in pcs):
            return
        second, times = self._reads.get(tgid, (0, 0))
        if second != int(time.monotonic()) or times < READS_IN_A_SECOND:
            yield from self.of_target(tgid)

    def _span(self, tgid: int, modules: Iterable[MappedModule]) -> None:
        """Tell the kernel side where the libraries' code lies: [from, to), with whatever is between."""
        libraries = [m for m in modules if m.identity != self._identity and m.start >= LIBRARIES_FROM]
        if self._spans is None or not libraries:
            return
        low, high = min(m.start for m in libraries), max(m.end for m in libraries)
        with contextlib.suppress(OSError):  # full: stacks are told apart by the program's own code
            self._spans.put(
                tgid.to_bytes(4, "little"), low.to_bytes(8, "little") + high.to_bytes(8, "little")
            )

    def _thread(self, tgid: int, tid: int) -> Iterator[events.Event]:
        if len(self._threads) < MAX_KNOWN:
            self._threads.add((tgid, tid))
            yield events.ThreadSeen(tgid=tgid, tid=tid, comm=self.thread(tgid, tid))

    def thread(self, tgid: int, tid: int) -> str:
        """Name of a thread, untrusted text; of one that has ended, the one it had then; "" when not known."""
        comm = self._helper.comm(tgid, tid)
        if comm or self._names is None:
            return comm
        raw = self._names.get((tgid << 32 | tid).to_bytes(8, "little"))
        return raw.split(b"\0", 1)[0].decode("utf-8", "backslashreplace") if raw else ""

    def _may_confirm(self) -> bool:
        second, used = self._confirms
        now = int(time.monotonic())
        if second != now:
            second, used = now, 0
        self._confirms = (second, used + 1)
        return used < CONFIRMS_PER_SECOND

    def _confirm(self, tgid: int, reg: events.Registration) -> events.FdinfoChecked:
        present, holders = None, None
        if reg.epfd >= 0:
            entries = self._helper.epoll_entries(tgid, reg.epfd)
            if entries is not None:
                present = any(entry.fd == reg.fd and entry.data == reg.userdata for entry in entries)
        if reg.state is abi.RegState.ORPHAN and reg.ino and time.monotonic() >= self._holders_from:
            # it reads the descriptors of every process of the node
            began = time.monotonic()
            holders = self._helper.holders(reg.ino, tgid, reg.fd)
            self._holders_from = time.monotonic() + max(HOLDERS_EVERY_S, 50 * (time.monotonic() - began))
        return events.FdinfoChecked(
            ts=time.monotonic_ns(),
            tgid=tgid,
            epfd=reg.epfd,
            fd=reg.fd,
            userdata=reg.userdata,
            present=present,
            holders=tuple(holders) if holders is not None else None,
        )

# Owns which moments belong to the registration that a finding is about, and what came before it went wrong.
# A slot keeps the last ADD, DEL and close of its generation, of whatever fd: perhaps those of another one.
from __future__ import annotations

import errno

from agent.correlator.chain import Doubts, actor, seen
from agent.correlator.findings import Actor
from probes.abi import RegFlag, RegState
from probes.events import Moment, Registration, SlotLife

_ENDED = int(RegFlag.BY_DEL | RegFlag.BY_CLOSE)

_MEANING = {
    errno.ENOSPC: "the limit of watches of its user was reached",
    errno.EEXIST: "the instance had this fd registered already",
    errno.EPERM: "epoll cannot watch a file of this kind",
    errno.ENOMEM: "the kernel had no memory for it",
    errno.EINVAL: "no file of this kind, or no such combination of flags, can be registered there",
    errno.ELOOP: "instances would watch each other in a circle",
}
_REMEDY = {
    errno.ENOSPC: "Raise fs.epoll.max_user_watches (sysctl), or watch fewer files: ",
    errno.EEXIST: "EPOLL_CTL_MOD what is registered already: ",
    errno.EPERM: "Do not register regular files and directories, they are always ready: ",
}


def own(slot: SlotLife | None, reg: Registration | None) -> bool:
    """Whether the slot's last ADD, DEL and close can be those of `reg`; of no registration they can."""
    return slot is not None and (reg is None or (reg.fd == slot.fd and reg.gen == slot.gen))


def added(slot: SlotLife | None, reg: Registration | None) -> Moment | None:
    """The ADD that made `reg`, or the slot's."""
    if reg is not None and reg.add.seen:
        return reg.add
    return slot.add if slot is not None and own(slot, reg) else None


def closed(slot: SlotLife | None, reg: Registration | None) -> Moment | None:
    """The close of the registration's fd, or the slot's."""
    if reg is not None and reg.end.seen and (reg.flags & RegFlag.BY_CLOSE or reg.state is RegState.ORPHAN):
        return reg.end
    return slot.close if slot is not None and own(slot, reg) else None


def removed(slot: SlotLife | None, reg: Registration | None) -> Moment | None:
    """The EPOLL_CTL_DEL of `reg`, or the slot's; it may have failed."""
    if reg is not None and reg.end.seen and reg.flags & _ENDED == RegFlag.BY_DEL:
        return reg.end
    return slot.removed if slot is not None and own(slot, reg) else None


def generation(slot: SlotLife | None, reg: Registration | None) -> str:
    """Said of a step of a registration that is older than the slot's last life."""
    return f"generation {reg.gen}" if reg is not None and slot is not None and reg.gen != slot.gen else ""


def is_refused(reg: Registration | None) -> bool:
    """A "registration" that is only the record of an ADD that failed."""
    return reg is not None and bool(reg.flags & RegFlag.ADD_FAILED)


def refused(reg: Registration | None, doubts: Doubts) -> tuple[Actor, ...]:
    """The failing ADD that a chain began with."""
    if reg is None or not is_refused(reg):
        return ()
    name = errno.errorcode.get(reg.error, f"errno {reg.error}")
    meaning = _MEANING.get(reg.error)
    doubts.note(
        f"it began with an EPOLL_CTL_ADD of fd {reg.fd} that failed with {name}"
        + (f": {meaning}" if meaning else "")
        + (" (fs.epoll.max_user_watches)" if reg.error == errno.ENOSPC else "")
    )
    return seen("refused", reg.add, f"EPOLL_CTL_ADD of fd {reg.fd} returned -{name}")


def remedy(reg: Registration | None) -> tuple[str, ...]:
    """What to do about a failing ADD that a chain began with."""
    if reg is None or not is_refused(reg):
        return ()
    first = _REMEDY.get(reg.error, "")
    text = (
        "look at the path that cleans up after a failing EPOLL_CTL_ADD: it must end the slot and the fd once."
    )
    return (first + (text if first else text[:1].upper() + text[1:]),)


def history(slot: SlotLife | None, reg: Registration | None, failed: bool) -> tuple[Actor, ...]:
    """Registered (must have happened), removed and closed (need not have). failed: the DEL did."""
    note = generation(slot, reg)
    removing, ended = removed(slot, reg), closed(slot, reg)
    if ended is not None and ended == removing:
        ended = None
    return (
        actor("registered", added(slot, reg), note),
        *seen("removed", removing, "EPOLL_CTL_DEL failed" if failed else "EPOLL_CTL_DEL"),
        *seen("closed", ended, note),
    )

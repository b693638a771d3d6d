# Owns what is said of builds that were never watched: replaced again before their probes were in place.
# Must not attach or resolve.
from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator

from agent.processes import FileId
from probes.events import Lost

WHAT = "builds-not-watched"
_MOST = 256  # strangers, and builds that were told of, which are remembered


class UnwatchedBuilds:
    """Counts them by program; says so at the first, the second, the fourth, …"""

    def __init__(self, notice: Callable[[str], None]) -> None:
        self._notice = notice
        self._strangers: OrderedDict[int, tuple[FileId, str]] = (
            OrderedDict()
        )  # pid -> what it runs, of which exe
        self._told: OrderedDict[FileId, None] = OrderedDict()
        self._counts: Counter[str] = Counter()
        self._new = 0

    def replaced(self, exe: str, build: FileId, identity: str = "") -> None:
        """A build was found on disk, and another one stands there by the time that it could be watched."""
        self._told[build] = None
        self._told.move_to_end(build)
        if len(self._told) > _MOST:
            self._told.popitem(last=False)
        self._new += 1
        self._counts[exe] += 1
        count = self._counts[exe]
        if count & (count - 1) == 0:
            which = f"build {identity}" if identity else "a build"
            total = f", {count:,} of them by now" if count > 1 else ""
            self._notice(
                f"{exe}: {which} was replaced before it could be watched{total}: what it did is not known. "
                "To watch a process of it that still runs: afterfree watch --pid PID"
            )

    def stranger(self, pid: int, build: FileId, exe: str) -> None:
        """A process executed `exe`, and that was another file than the one whose probes are in place."""
        self._strangers[pid] = (build, exe)
        if len(self._strangers) > _MOST:
            self._strangers.popitem(last=False)

    def judge(
        self,
        watched: Collection[int],
        coming: Collection[str],
        builds: Collection[FileId],
        alive: Callable[[int], bool],
    ) -> None:
        """About once a second. watched: processes; coming: programs whose new build is being looked at;
        builds: that have probes."""
        for pid, (build, exe) in list(self._strangers.items()):
            if pid not in watched and (exe in coming or (build in builds and alive(pid))):
                continue  # it will be known soon
            del self._strangers[pid]
            if pid not in watched and build not in builds and build not in self._told:
                self.replaced(exe, build)

    def lost(self, ts: int) -> Iterator[Lost]:
        """What was not said as an event yet. ts: now."""
        if self._new:
            yield Lost(ts=ts, what=WHAT, count=self._new, since=ts)
            self._new = 0

# Owns "which processes belong to a systemd unit": its control group, by systemd's word or by its usual place.
# Must not attach or wait; asks systemctl once per unit, within a time limit.
from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from agent.errors import Misused, NoSuchTarget, PrerequisiteMissing

_ROOTS = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd")  # v2; v1 and hybrid
_NAME = re.compile(r"[A-Za-z0-9:_.\\@][A-Za-z0-9:_.\\@-]{0,254}")  # systemd.unit(5)
_KINDS = (".service", ".scope", ".slice", ".socket", ".mount")
_PATIENCE = 60.0  # seconds for systemctl, on a machine under load
_MOST_GROUPS = 256
_MOST_PROCESSES = 4096


class Units:
    """Control groups of units. `roots` and `systemctl` let tests use a tree of their own."""

    def __init__(self, roots: Sequence[str] = _ROOTS, systemctl: str | None = "systemctl") -> None:
        self._roots = [Path(root) for root in roots]
        self._named = systemctl
        self._folders: dict[str, Path] = {}
        self._late = False  # systemctl was asked and did not answer

    @cached_property
    def _systemctl(self) -> str | None:
        import shutil  # where a unit is asked for only: it brings every compressor, half a megabyte

        return shutil.which(self._named) if self._named else None

    def processes(self, name: str) -> tuple[int, ...]:
        """Processes of the unit and of the groups below it, at most 4096.

        Raises Misused (no unit name), PrerequisiteMissing (no control groups), NoSuchTarget (nothing runs).
        """
        folder = self._folders.get(name)
        if folder is None:
            folder = self._folders[name] = self._find(name)
        found: set[int] = set()
        waiting, seen = [folder], 0
        while waiting and seen < _MOST_GROUPS and len(found) < _MOST_PROCESSES:
            group = waiting.pop()
            seen += 1
            try:
                rows = (group / "cgroup.procs").read_text(encoding="ascii").split()
                waiting += [child for child in group.iterdir() if child.is_dir() and not child.is_symlink()]
            except (OSError, ValueError):
                continue  # removed meanwhile, or a threaded group, whose parent lists its processes
            found.update(int(row) for row in rows if row.isdigit() and row != "0")
        if not found:
            raise self._nothing_runs(name)
        return tuple(sorted(found)[:_MOST_PROCESSES])

    def _find(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise Misused(f"{name!r} is not the name of a unit", remedy="afterfree watch --unit node.service")
        full = name if name.endswith(_KINDS) else f"{name}.service"
        roots = [root for root in self._roots if (root / "cgroup.procs").is_file()]
        if not roots:
            raise PrerequisiteMissing(
                "there are no control groups on this machine",
                detail=f"None of {', '.join(map(str, self._roots))} has a cgroup.procs.",
                remedy="mount -t cgroup2 none /sys/fs/cgroup\nafterfree watch --exe PROGRAM",
            )
        for place in (self._told(full), f"system.slice/{full}"):
            for root in roots if place else ():
                folder = root / place
                if ".." not in folder.parts and (folder / "cgroup.procs").is_file():
                    return folder
        raise self._nothing_runs(name)

    def _told(self, full: str) -> str:
        """What systemd says, relative to the root; "" when there is no systemd, or nothing runs."""
        if self._systemctl is None:
            return ""
        command = [self._systemctl, "show", "-p", "ControlGroup", "--value", "--", full]
        try:
            answer = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=_PATIENCE, check=False
            )
        except OSError:
            return ""
        except subprocess.TimeoutExpired:
            self._late = True
            return ""
        return answer.stdout.strip().lstrip("/") if answer.returncode == 0 else ""

    def _nothing_runs(self, name: str) -> NoSuchTarget:
        causes = ["the unit is not started, or has another name", "it is a user's unit, not the system's"]
        if self._systemctl is None:
            causes.insert(0, "there is no systemctl here; only system.slice was looked through")
        elif self._late:
            causes.insert(0, f"systemctl gave no answer within our own limit of {_PATIENCE:.0f} s")
        return NoSuchTarget(
            f"unit {name} has no processes",
            causes=tuple(causes),
            remedy=f"systemctl status {name}\nafterfree watch --exe PROGRAM   (waits for its first process)",
        )

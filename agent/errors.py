# Owns the failures of the agent's own parts. They carry data; agent/cli.py alone turns them into text
# and exit codes. Must not print, and must not import anything heavy: the daemon keeps it loaded.
from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What a shell or a CI job can tell from the exit status (DESIGN section 7)."""

    OK = 0
    RUNTIME = 1
    USAGE = 2
    PREREQUISITE = 3
    FINDINGS = 10


class AgentError(Exception):
    """Base: what failed (title), the detail, likely causes, and what to do or run next (remedy)."""

    exit_code = ExitCode.RUNTIME

    def __init__(
        self, title: str, *, detail: str = "", causes: tuple[str, ...] = (), remedy: str = ""
    ) -> None:
        self.title = title
        self.detail = detail
        self.causes = causes
        self.remedy = remedy
        super().__init__(f"{title}: {detail}" if detail else title)


class Misused(AgentError):
    """The command line asks for something that makes no sense together."""

    exit_code = ExitCode.USAGE


class PrerequisiteMissing(AgentError):
    """Something the machine must provide is not there."""

    exit_code = ExitCode.PREREQUISITE


class NoSuchTarget(AgentError):
    """The process or the executable to watch does not exist (any more)."""


class NothingSeen(AgentError):
    """A run ended without having seen any process of what it was to watch: it says nothing about it."""

    def __init__(self, wanted: tuple[str, ...]) -> None:
        """wanted: programs and units."""
        named = " or ".join(wanted[:3]) + (f" and {len(wanted) - 3} more" if len(wanted) > 3 else "")
        super().__init__(
            f"no process of {named or 'this recording'} was ever seen",
            detail="Nothing was judged: this is not the result of a run without findings.",
            causes=(
                "none was started while this ran",
                "what runs is another file: a copy, another build, or a wrapper starts it",
            )
            if wanted
            else ("none was started while it was recorded",),
            remedy="pgrep -a NAME, then readlink /proc/PID/exe   (shows the file that really runs)\n"
            "afterfree watch --pid PID",
        )

    def to_json(self) -> dict[str, str]:
        """For the output of a command that was asked for JSON."""
        return {
            "schema": "afterfree.failure/1",
            "error": self.title,
            "detail": self.detail,
            "remedy": self.remedy,
        }


class SymbolsFailed(AgentError):
    """symbols/ refused an executable or a profile; `kind` is the class name of its SymbolError."""

    def __init__(
        self,
        title: str,
        *,
        detail: str = "",
        causes: tuple[str, ...] = (),
        remedy: str = "",
        kind: str = "",
    ) -> None:
        super().__init__(title, detail=detail, causes=causes, remedy=remedy)
        self.kind = kind
        if kind in ("NoDebugInfo", "WrongMachine"):
            self.exit_code = ExitCode.PREREQUISITE


class OutputFailed(AgentError):
    """A file that was asked for cannot be opened or written."""


class RecordingError(AgentError):
    """A recording cannot be read; `offset` is the byte where reading stopped."""

    def __init__(
        self,
        title: str,
        *,
        detail: str = "",
        causes: tuple[str, ...] = (),
        remedy: str = "",
        offset: int = 0,
    ) -> None:
        super().__init__(title, detail=detail, causes=causes, remedy=remedy)
        self.offset = offset


class NotARecording(RecordingError):
    """The file does not begin like a recording."""


class OtherVersion(RecordingError):
    """A recording of a format or ABI version that this build does not read."""


class RecordingTruncated(RecordingError):
    """The file ends before its end marker; everything before that was delivered."""


class RecordingDamaged(RecordingError):
    """A frame contradicts itself; everything before it was delivered."""


class DemoFailed(AgentError):
    """The demonstration could not be carried through."""

# Owns the exceptions of symbols/. They carry data; agent/cli.py alone turns them into text.
# Must not format for a terminal, and must not import anything of symbols/.
from __future__ import annotations

import struct


class SymbolError(Exception):
    """Anything that keeps symbols/ from answering.

    path: the file it is about; detail: what is wrong, one clause; remedy: what the user can do.
    """

    default_remedy = ""

    def __init__(self, detail: str, *, path: str = "", remedy: str = "") -> None:
        self.path = path
        self.detail = detail
        self.remedy = remedy or self.default_remedy
        super().__init__(f"{path}: {detail}" if path else detail)

    @property
    def details(self) -> tuple[str, ...]:
        """What is wrong, line by line."""
        return (self.detail,)


class NotReadable(SymbolError):
    """The file cannot be opened or mapped (errno text in detail)."""

    default_remedy = "check the path and the permissions"


class NotElf(SymbolError):
    """No ELF magic."""

    default_remedy = "name the executable itself, not a script or an archive"


class NotAFile(NotElf):
    """A folder, a device, a pipe."""

    default_remedy = "give the path of the program itself, not of its folder"


class WrongMachine(SymbolError):
    """An ELF file for a machine (or class, or byte order) that is not supported."""

    default_remedy = "name an executable for x86-64 or aarch64"

    def __init__(self, detail: str, *, path: str = "", remedy: str = "", machine: str = "") -> None:
        super().__init__(detail, path=path, remedy=remedy)
        self.machine = machine


class MalformedImage(SymbolError):
    """ELF or DWARF that contradicts itself; where: the section or structure."""

    default_remedy = "the file is damaged or truncated: copy or build it again"

    def __init__(self, detail: str, *, path: str = "", remedy: str = "", where: str = "") -> None:
        super().__init__(f"{where}: {detail}" if where else detail, path=path, remedy=remedy)
        self.where = where


class NoDebugInfo(SymbolError):
    """No .debug_info: stripped, or built without. tried: every other place looked at, with the outcome."""

    default_remedy = (
        "give the separate debug file with --debug-file, or rebuild without strip (zig: -fno-strip, gcc: -g)"
    )

    def __init__(self, detail: str, *, path: str = "", remedy: str = "", tried: tuple[str, ...] = ()) -> None:
        super().__init__(detail, path=path, remedy=remedy)
        self.tried = tried

    @property
    def details(self) -> tuple[str, ...]:
        return (self.detail, *(f"tried {place}" for place in self.tried))


class DebugFileMismatch(SymbolError):
    """The debug file does not belong to the executable."""

    default_remedy = "use the debug file made from the very same build"


STRAY_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
)
"""What careful code may still run into on a hostile file. Caught at the entry points of symbols/ only."""


def stray(error: Exception, path: str) -> MalformedImage:
    """The typed form of one of STRAY_ERRORS."""
    return MalformedImage(
        f"not understood ({type(error).__name__}: {error})", path=path, where="debug information"
    )


class ProfileError(SymbolError):
    """A profile that does not parse or validate; line is 0 where it cannot be told."""

    default_remedy = "correct the profile"

    def __init__(
        self, detail: str, *, path: str = "", remedy: str = "", line: int = 0, key: str = ""
    ) -> None:
        super().__init__(f"line {line}: {detail}" if line else detail, path=path, remedy=remedy)
        self.line = line
        self.key = key


class NoProfileMatch(SymbolError):
    """No shipped profile's destroy resolves in the image; tried: their names."""

    default_remedy = "write a profile for this program and give it with --profile"

    def __init__(self, detail: str, *, path: str = "", remedy: str = "", tried: tuple[str, ...] = ()) -> None:
        super().__init__(detail, path=path, remedy=remedy)
        self.tried = tried


class NoDestroySite(SymbolError):
    """The profile's destroy has no place that can be probed; found: what was there, line by line."""

    default_remedy = "check the destroy pattern of the profile against the names in the executable"

    def __init__(self, detail: str, *, path: str = "", remedy: str = "", found: tuple[str, ...] = ()) -> None:
        super().__init__(detail, path=path, remedy=remedy)
        self.found = found


class BadPlan(SymbolError):
    """A serialized plan of another version or with a field that does not validate."""

    default_remedy = "resolve the plan again from the executable"

    def __init__(self, detail: str, *, path: str = "", remedy: str = "", key: str = "") -> None:
        super().__init__(f"{key}: {detail}" if key else detail, path=path, remedy=remedy)
        self.key = key

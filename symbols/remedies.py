# Owns what somebody can do about an instance that has no probe: in the source, the build or the profile. By
# the reason's words (symbols/ writes them); pure.
from __future__ import annotations

_KEEP = {
    "zig": "`noinline fn`",
    "rs": "`#[inline(never)]`",
    "go": "`//go:noinline`",
}
_KEEP_C = "`__attribute__((noipa))` (gcc) or `__attribute__((noinline))` (clang)"
_OTHER = {
    "dispatch": "each handled event goes through once",
    "destroy": "the end of each slot goes through",
    "create": "returns each new slot",
    "disown": "each slot that is given up goes through",
}


def remedy(role: str, function: str, reason: str, file: str) -> str:
    """One sentence. role: a symbols.plan.Role's value. file: of the call or the declaration, whose name tells
    the language; "" unknown."""
    bare = function.rpartition(".")[2].rpartition(":")[2] or function
    if "split debug information" in reason:
        return "keep the .dwo or .dwp files beside the executable, or build without -gsplit-dwarf"
    if "has no parameter" in reason:
        return 'write one of its parameters in the profile\'s slot = "…"'
    if "no function in the debug information" in reason:
        return "build it with debug information (-g; in Zig without -fstrip)"
    if "merged" in reason or "folded" in reason:
        return (
            "build without merging of code: -fno-crossjumping -fno-ipa-icf (gcc), -Wl,--icf=none (lld); "
            f"or keep {bare} out of line: {_keep(file)}"
        )
    return (
        f"keep {bare} out of line, where its argument is in a register: {_keep(file)}; or "
        f"name another function that {_OTHER.get(role, 'does the same')} in the profile's slot.{role}"
    )


def _keep(file: str) -> str:
    return _KEEP.get(file.rpartition(".")[2].lower(), _KEEP_C)

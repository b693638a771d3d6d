# Owns how every Python child of ours is started, here and in agent/: which code it can load, what it
# inherits, and what is known of its end. The daemon runs as root in folders and with variables of others:
# nothing of the current folder and no PYTHON* variable of the caller reaches a child.
from __future__ import annotations

import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""Where our packages live: a checkout, or the site-packages of a wheel."""

_START = str(ROOT / "probes" / "child_main.py")
_MOST_WORDS = 1 << 16
_MOST_LINES = 12


def command(module: str, *arguments: str, packages: bool = True) -> list[str]:
    """The command line that runs `main()` of a module of ours.

    -I: neither the current folder nor the folder of the script is on the module path, PYTHON* and the user's
    own site-packages do not count, so that sitecustomize can only be the system's. Our packages are found
    where this file lies, however it was installed: the finder of an editable installation is not needed.
    packages: False for a module that needs the standard library only; it starts in half the time.
    """
    site = [] if packages else ["-S"]
    # faulthandler: the last words of one that dies of a signal in native code (LLVM)
    return [sys.executable, "-I", *site, "-X", "faulthandler", _START, module, *arguments]


def environment() -> dict[str, str]:
    """Ours without PYTHON*: -I ignores them, and they must not reach what a child starts either."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


class Child(subprocess.Popen[bytes]):
    """A child of ours. Its standard error is kept, for the report of an end that nobody wanted."""

    def __init__(
        self,
        given: Sequence[str],
        *,
        stdin: int = subprocess.DEVNULL,
        stdout: int | None = None,
        pass_fds: Sequence[int] = (),
        here: bool = False,
        session: bool = True,
        buffered: bool = True,
        overheard: bool = False,
    ) -> None:
        """given: of `command`. stdout: None for where standard error goes. Raises OSError.

        here: in the current folder, for one that opens what the user named; others have no business there,
        and libraries do take files from it unasked (clang an included header). session: one of its own, so
        that Ctrl-C in our terminal is not for it. buffered: our ends of its pipes. overheard: its standard
        error is ours.
        """
        # A file, not a pipe: nobody has to empty it, and writing to it works when we are gone.
        self._log = os.memfd_create("af-child-log")
        weakref.finalize(self, os.close, self._log)
        super().__init__(
            list(given),
            stdin=stdin,
            stdout=self._log if stdout is None else stdout,
            stderr=None if overheard else self._log,
            pass_fds=tuple(pass_fds),
            cwd=None if here else "/",
            start_new_session=session,
            env=environment(),
            bufsize=-1 if buffered else 0,
        )

    def last_words(self) -> str:
        """The last lines it wrote to standard error."""
        size = os.fstat(self._log).st_size
        raw = os.pread(self._log, _MOST_WORDS, max(0, size - _MOST_WORDS))
        return "\n".join(raw.decode("utf-8", "replace").strip().splitlines()[-_MOST_LINES:])

    def ending(self) -> str:
        """How it ended: "ended with exit status 1", "was killed by signal 9 (SIGKILL)"."""
        code = self.poll()
        if code is None:
            return "still runs"
        return f"was killed by {signal_name(-code)}" if code < 0 else f"ended with exit status {code}"


def signal_name(number: int) -> str:
    """ "signal 9 (SIGKILL)"; real-time signals have no name of their own."""
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"

# Owns the command line's frame: the one place where exceptions become text and exit codes.
# Commands live one per file in agent/commands/ and are imported when they are used.
from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import click

from agent import __version__
from agent.errors import AgentError, ExitCode
from agent.sanitize import printable

_COMMANDS = {
    "watch": "agent.commands.watch",
    "record": "agent.commands.record",
    "replay": "agent.commands.replay",
    "census": "agent.commands.census",
    "report": "agent.commands.report",
    "symbols": "agent.commands.symbols",
    "postmortem": "agent.commands.postmortem",
    "doctor": "agent.commands.doctor",
    "demo": "agent.commands.demo",
}


class _Commands(click.Group):
    """Finds a command by name and imports its module only then: the daemon stays small."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        module = _COMMANDS.get(cmd_name)
        if module is None:
            return None
        command = importlib.import_module(module).command
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}.command is not a command")
        return command


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 fine, 1 runtime error, 2 usage, 3 a prerequisite is missing "
    "(see `afterfree doctor`), 10 findings at or above --fail-on.",
)
@click.version_option(__version__, "--version", message="afterfree %(version)s")
def cli() -> None:
    """Prove stale epoll deliveries on a running server.

    afterfree attaches to an epoll server that nobody prepared, learns from its DWARF where it frees
    its connection slots, and tells you, live and with proof, when epoll hands it an event for a slot
    that is already gone.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One failure in the shape the user reads: what failed, detail, likely causes, what to run next."""

    title: str
    detail: str = ""
    causes: tuple[str, ...] = ()
    remedy: str = ""
    code: int = ExitCode.RUNTIME

    def __str__(self) -> str:
        lines = [f"afterfree: {printable(self.title)}"]
        lines += [f"  {printable(line)}" for line in self.detail.splitlines()[:12]]
        if self.causes:
            lines += ["", "  likely causes", *(f"    · {printable(cause)}" for cause in self.causes[:6])]
        if self.remedy:
            lines += ["", "  next", *(f"    {printable(line)}" for line in self.remedy.splitlines()[:8])]
        return "\n".join(lines)


def explain(error: BaseException) -> Message:
    """The message and exit code for any exception that a command let through."""
    from probes.errors import ProbeError
    from symbols.errors import SymbolError

    if isinstance(error, AgentError):
        return Message(
            title=error.title,
            detail=error.detail,
            causes=error.causes,
            remedy=error.remedy,
            code=error.exit_code,
        )
    if isinstance(error, ProbeError):
        missing = error.exit_code_hint == "prerequisite"
        return Message(
            title=error.title,
            detail=error.detail,
            causes=tuple(error.causes),
            remedy=error.remedy or "afterfree doctor",
            code=ExitCode.PREREQUISITE if missing else ExitCode.RUNTIME,
        )
    if isinstance(error, SymbolError):
        from agent.symbolize import symbols_failed

        detail = "\n".join(error.details)
        return explain(symbols_failed(type(error).__name__, error.path, detail, error.remedy))
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        return Message(
            title=f"the system refused an operation: {error.strerror or error}{where}",
            remedy="afterfree doctor\nAFTERFREE_DEBUG=1 afterfree …   (shows where it happened)",
        )
    return Message(
        title="this is a defect of afterfree itself",
        detail=f"{type(error).__name__}: {error}",
        remedy="AFTERFREE_DEBUG=1 afterfree …   (shows where it happened; put that into the report)",
    )


def run(args: Sequence[str] | None = None, *, whole: bool = False) -> int:
    """Run one command line and return its exit code. Nothing but AFTERFREE_DEBUG=1 shows a traceback.

    whole: the process ends with it (agent.stopping.Stop, `lasting`).
    """
    try:
        result = cli.main(
            args=list(args) if args is not None else None,
            prog_name="afterfree",
            standalone_mode=False,
            obj=whole,
        )
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx is not None else "afterfree --help", err=True)
        return int(ExitCode.USAGE)
    except click.UsageError as error:
        context = error.ctx.command_path if error.ctx is not None else "afterfree"
        message = Message(title=error.format_message(), remedy=f"{context} --help", code=int(ExitCode.USAGE))
        return _fail(message)
    except click.ClickException as error:
        return _fail(Message(title=error.format_message()))
    except click.exceptions.Exit as error:
        return int(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return _fail(Message(title="interrupted"))
    except BrokenPipeError:
        # The reader (head, less) is gone. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.RUNTIME)
    except Exception as error:
        if os.environ.get("AFTERFREE_DEBUG") == "1":
            raise
        return _fail(explain(error))
    return int(result) if isinstance(result, int) else int(ExitCode.OK)


def _fail(message: Message) -> int:
    sys.stdout.flush()
    click.echo(str(message), err=True)
    return int(message.code)


def main() -> NoReturn:
    """The process's whole life; the console script comes here by agent/entry.py."""
    code = run(whole=True)
    # All is said and done: a signal that comes while the interpreter takes itself apart changes nothing. It
    # would be the exit status, since Python gives its handlers up first (_PySignal_Fini in Py_FinalizeEx).
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


if __name__ == "__main__":
    from agent.entry import shut

    shut()
    main()

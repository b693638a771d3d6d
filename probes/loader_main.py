# Entry point of the loader child: one request on stdin (JSON), one answer with file descriptors on the
# socket whose number is the first argument. Exits at once: whoever holds the descriptors holds the probes.
# The argument "bcc" only shows what bcc there is.
from __future__ import annotations

import json
import os
import socket
import sys
from typing import Any

from probes import perf, tracefs, uprobe_events
from probes.errors import LoaderFailed, NotRoot, ProbeError
from probes.loader_bcc import LoadRequest, import_bcc, load

FDS_PER_MESSAGE = 200  # SCM_MAX_FD is 253 (unix(7))
PROTOCOL = 1


def answer(channel: socket.socket, message: dict[str, Any], fds: list[int]) -> None:
    """One JSON line with the first descriptors, then one byte per further bunch of them."""
    data = json.dumps({"protocol": PROTOCOL, "fds": len(fds), **message}).encode() + b"\n"
    socket.send_fds(channel, [data], fds[:FDS_PER_MESSAGE])
    for start in range(FDS_PER_MESSAGE, len(fds), FDS_PER_MESSAGE):
        socket.send_fds(channel, [b"+"], fds[start : start + FDS_PER_MESSAGE])


def serve(channel: socket.socket, raw: bytes) -> None:
    try:
        if os.geteuid() != 0:
            raise NotRoot(os.geteuid())
        tracefs.ensure_mounted()
        uprobe_events.remove(uprobe_events.left())  # of versions that attached by bcc
        fields = json.loads(raw)
        if "attach" in fields:
            links = [
                link for program, name in fields["attach"] for link in _attached(int(program), str(name))
            ]
            answer(channel, {"maps": [], "links": len(links)}, links)
            return
        loaded = load(
            LoadRequest(
                image=fields["image"],
                readers=fields["readers"],
                programs=tuple((int(offset), str(name)) for offset, name in fields["programs"]),
                defines=tuple(fields["defines"]),
                pids=tuple(fields["pids"]),
                empty=bool(fields["empty"]),
                fresh=bool(fields.get("fresh")),
                ask=bool(fields.get("ask", True)),
            )
        )
    except ProbeError as error:
        failure = {
            "error": type(error).__name__,
            "title": error.title,
            "detail": error.detail,
            "causes": list(error.causes),
            "remedy": error.remedy,
            "hint": error.exit_code_hint,
        }
        answer(channel, failure, [])
        return
    except Exception as error:  # noqa: BLE001 - the parent must hear of everything
        failed = LoaderFailed("the loader failed", detail=f"{type(error).__name__}: {error}")
        answer(channel, {"error": "LoaderFailed", "title": failed.title, "detail": failed.detail}, [])
        return
    names = list(loaded.maps)
    fds = [loaded.maps[name] for name in names] + loaded.links
    answer(channel, {"maps": names, "links": len(loaded.links), "missing": loaded.missing}, fds)


def _attached(program: int, tracepoint: str) -> list[int]:
    """The perf event that runs a lent program at "category:event"; none where this kernel has no such one."""
    category, event = tracepoint.split(":")
    number = perf.tracepoint_id(category, event)
    try:
        return [] if number is None else [perf.attach(program, number)]
    except OSError as error:
        raise LoaderFailed(
            f"cannot attach to tracepoint {tracepoint}",
            detail=str(error),
            causes=("kernel.perf_event_paranoid forbids it", "too many open files (ulimit -n)"),
            remedy="afterfree doctor",
        ) from error


def show_bcc() -> int:
    """For doctor: the version and place of bcc in this process, or why it has none."""
    try:
        bcc = import_bcc()
    except ProbeError as error:
        print(f"{error.title}: {error.detail}", error.remedy, sep="\n")
        return 3
    print(getattr(bcc, "__version__", "?"), bcc.__file__)
    return 0


def main() -> int:
    if sys.argv[1] == "bcc":
        return show_bcc()
    channel = socket.socket(fileno=int(sys.argv[1]))
    serve(channel, sys.stdin.buffer.read())
    channel.close()
    sys.stdout.flush()
    os._exit(0)  # bcc's exit handlers would detach what was just handed over


if __name__ == "__main__":
    sys.exit(main())

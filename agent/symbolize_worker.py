# Owns the child's side of agent/symbolize.py: JSON lines on stdin, JSON lines on stdout, one at a time.
# The only place of agent/ that loads symbols/' readers into a process. Must not outlive its pipe.
from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from symbols.cached import resolve_cached
from symbols.debugfiles import Searched, find_debug_file
from symbols.errors import NoDebugInfo, SymbolError
from symbols.fetch import Debuginfod
from symbols.image import Image
from symbols.lines import Symbolizer
from symbols.overlay import describe_bytes
from symbols.plan import Frame, SlotLayout
from symbols.serial import plan_from_json, plan_to_json

_MOST_MEMORY = 4096
"""Bytes of one slot that are described."""


class Worker:
    """Answers requests; keeps the last image open, since questions come in runs."""

    def __init__(self) -> None:
        self._identity = ""
        self._images: list[Image] = []
        self._symbolizer: Symbolizer | None = None

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The reply to one request; every failure is an {"error": …} reply."""
        try:
            kind = request.get("do")
            if kind == "resolve":
                return {"plan": self._resolve(request)}
            if kind == "frames":
                self._open(request)
                return {"answers": [self._one(self._frames, args) for args in request["args"]]}
            if kind == "memory":
                layout = plan_from_json(request.get("plan")).slot
                return {"answers": [self._one(partial(_memory, layout), args) for args in request["args"]]}
            raise ValueError(f"unknown request {kind!r}")
        except SymbolError as error:
            tried = [f"tried {place}" for place in error.tried] if isinstance(error, NoDebugInfo) else []
            return _failed(type(error).__name__, "\n".join([error.detail, *tried]), error.path, error.remedy)
        except MemoryError:
            return _failed("MemoryError", "the symbol worker ran out of memory")
        except Exception as error:
            if os.environ.get("AFTERFREE_DEBUG") == "1":
                raise
            return _failed(type(error).__name__, f"{type(error).__name__}: {error}")

    def _resolve(self, request: Mapping[str, Any]) -> dict[str, Any]:
        profile, debug = request.get("profile"), request.get("debug")
        plan = resolve_cached(
            str(request["image"]), str(profile) if profile else None, debug_file=str(debug) if debug else None
        )
        return plan_to_json(plan)

    def _one(self, ask: Callable[..., dict[str, Any]], args: Any) -> dict[str, Any]:
        """One answer; what goes wrong with it is its reason, not the others'."""
        try:
            return ask(*args)
        except SymbolError as error:
            return {"reason": error.detail}
        except (LookupError, TypeError, ValueError, RecursionError) as error:
            return {"reason": f"{type(error).__name__}: {error}"}

    def _open(self, request: Mapping[str, Any]) -> None:
        """Find the image by its identity: a path alone may have become another build."""
        identity = str(request.get("identity", ""))
        if self._symbolizer is not None and identity == self._identity:
            return
        reason, paths = "no file with this image is known", [str(path) for path in request.get("images", ())]
        for path in paths:
            try:
                image = Image(path, any_machine=True)
            except SymbolError as error:
                reason = str(error)
                continue
            if image.identity == identity:
                self._use(identity, image, request.get("debug"))
                return
            image.close()
            reason = f"{path} is another build now"
        raise SymbolError(reason, path=paths[0] if paths else "")

    def _use(self, identity: str, image: Image, debug: object) -> None:
        for old in self._images:
            old.close()
        self._images = [image]
        separate = Image(str(debug), relocatable=True) if debug else _separate(image)
        if separate is not None:
            self._images.append(separate)
        self._identity, self._symbolizer = identity, Symbolizer(image, debug=separate)

    def _frames(self, address: int) -> dict[str, Any]:
        frames = self._symbolizer.frames(address) if self._symbolizer is not None else ()
        if not frames or (len(frames) == 1 and frames[0].function == "?"):
            return {"reason": "no function of the executable holds this address"}
        return {"frames": [_row(frame) for frame in frames]}


def _separate(image: Image) -> Image | None:
    """The debug file of a stripped image where one is at hand; no server is asked for a stack."""
    if image.has_debug_info:
        return None
    try:
        return find_debug_file(image, Searched(server=Debuginfod(urls=())))
    except SymbolError:
        return None


def _row(frame: Frame) -> list[Any]:
    where = frame.location
    if where is None:
        return [frame.function, "", 0, 0, frame.inlined]
    return [frame.function, where.file, where.line, where.column, frame.inlined]


def _memory(layout: SlotLayout, _type: str, memory: str) -> dict[str, Any]:
    return {"lines": list(describe_bytes(layout, bytes.fromhex(memory)[:_MOST_MEMORY]))}


def _failed(kind: str, detail: str, path: str = "", remedy: str = "") -> dict[str, Any]:
    return {"error": {"kind": kind, "detail": detail, "path": path, "remedy": remedy}}


def main() -> None:
    """Serve until stdin ends."""
    # The daemon decides when this process ends; a Ctrl-C in its terminal does not.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker = Worker()
    # What a library prints must not end up between the replies.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin.buffer:
        try:
            request = json.loads(line)
        except ValueError:
            request = {}
        reply = worker.answer(request if isinstance(request, dict) else {})
        replies.write(json.dumps(reply, separators=(",", ":")) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()

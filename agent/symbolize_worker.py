# Owns answering the questions of agent/symbolize.py: JSON lines on stdin, JSON lines on stdout, one at a
# time, in a process without rights that agent/symbolize_keeper.py starts.
# The only place of agent/ that loads symbols/' readers into a process. Must not outlive its pipe.
from __future__ import annotations

import json
import os
import sys
from base64 import b64decode
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from probes.confined import Asked, enter
from symbols.cache import PlanCache
from symbols.cached import resolve_cached
from symbols.errors import SymbolError
from symbols.image import Image
from symbols.plan import Frame, SlotLayout
from symbols.serial import plan_from_json, plan_to_json
from symbols.twins import twins

if TYPE_CHECKING:
    from agent.stack_worker import Spot
    from symbols.lines import Symbolizer

PACKAGES = ("capstone", "elftools", "zstandard")
"""What children of afterfree import of others' beside bcc."""
LATE = ("agent.libraries", "agent.stack_worker")
"""What of agent/ some questions need: a plan that is kept is handed out without any reader of DWARF."""
_MOST_MEMORY = 4096
"""Bytes of one slot that are described."""
_MOST_CALLS = 4096  # calls of which it is remembered whether others go to the same
_MOST_IMAGES = 16
"""Images that are kept open; a stack leads through a handful."""


class Worker:
    """Answers requests; keeps the images of late open, since questions come in runs."""

    def __init__(self, asked: Asked | None = None) -> None:
        """asked: keeps plans, and files that came with a request; None: plans are kept by this process."""
        self._asked = asked
        self._open_images: OrderedDict[str, _Opened] = OrderedDict()
        self._called: dict[tuple[str, int], bool] = {}

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The reply to one request; every failure is an {"error": …} reply."""
        try:
            kind = request.get("do")
            if kind == "hello":
                return {"packages": {name: str(import_module(name).__file__) for name in PACKAGES}}
            if kind == "resolve":
                plan, kept = self._resolve(request)
                return {"plan": plan, "kept": kept, "grown": "symbols.resolve" in sys.modules}
            if kind == "frames":
                opened = self._open(request, str(request.get("identity", "")))
                return {"answers": [self._one(partial(_frames, opened), args) for args in request["args"]]}
            if kind == "unwind":
                return {"answers": [self._one(self._unwound, (request, one)) for one in request["stacks"]]}
            if kind == "memory":
                layout = plan_from_json(request.get("plan")).slot
                return {"answers": [self._one(partial(_memory, layout), args) for args in request["args"]]}
            raise ValueError(f"unknown request {kind!r}")
        except SymbolError as error:
            return _failed(type(error).__name__, "\n".join(error.details), error.path, error.remedy)
        except MemoryError:
            return _failed("MemoryError", "the symbol worker ran out of memory")
        except Exception as error:
            if os.environ.get("AFTERFREE_DEBUG") == "1":
                raise
            return _failed(type(error).__name__, f"{type(error).__name__}: {error}")

    def _resolve(self, request: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
        """A plan, and whether it is one to keep."""
        profile, debug = request.get("profile"), request.get("debug")
        if self._asked is not None and profile and isinstance(request.get("profile_content"), str):
            self._asked.given = {str(profile): b64decode(request["profile_content"])}
        cache = PlanCache(given=self._asked)
        plan = resolve_cached(
            str(request["image"]),
            str(profile) if profile else None,
            debug_file=str(debug) if debug else None,
            cache=cache,
            fresh=request.get("fresh") is True,
        )
        return plan_to_json(plan), cache.keeps

    def _one(self, ask: Callable[..., dict[str, Any]], args: Any) -> dict[str, Any]:
        """One answer; what goes wrong with it is its reason, not the others'."""
        try:
            return ask(*args)
        except SymbolError as error:
            return {"reason": error.detail}
        except (LookupError, TypeError, ValueError, RecursionError) as error:
            return {"reason": f"{type(error).__name__}: {error}"}

    def _unwound(self, request: Mapping[str, Any], stack: Mapping[str, Any] | None) -> dict[str, Any]:
        if stack is None:
            return {"reason": "the stack's bytes were not kept"}

        def image_of(identity: str, _path: str) -> Image | None:
            try:
                return self._open(request, identity).image
            except SymbolError:
                return None

        from agent.stack_worker import in_the_id, unsure, unwound

        rows: list[list[Any]] = []
        told, spots = in_the_id(stack), unwound(stack, image_of)
        for spot, open_to_others in zip(spots, unsure(spots, told, self._elsewhere), strict=True):
            module = next((m for m in stack["modules"] if spot.module and m[0] == spot.module.start), None)
            name = str(module[3]) if module is not None else ""
            found: dict[str, Any] = {"reason": "outside of every mapped file"}
            if module is not None and module[4]:
                opened = self._open(request, str(module[4]))
                found = self._one(partial(_frames, opened), (spot.lookup,))
                if spot.pc not in told:
                    found |= self._one(partial(_twins, opened), (spot,))
                if open_to_others:
                    found["unsure"] = True
            rows.append([spot.pc, name, str(module[4]) if module else "", found])
        return {"stack": rows}

    def _elsewhere(self, spot: Spot) -> bool:
        from agent.stack_worker import called_elsewhere

        key = (spot.module.image.identity if spot.module and spot.module.image else "", spot.lookup)
        if key not in self._called:
            if len(self._called) >= _MOST_CALLS:
                self._called.clear()
            self._called[key] = called_elsewhere(spot)
        return self._called[key]

    def _open(self, request: Mapping[str, Any], identity: str) -> _Opened:
        """Find an image by its identity: a path alone may have become another build."""
        known = self._open_images.get(identity)
        if known is not None:
            self._open_images.move_to_end(identity)
            return known
        images = request.get("images", {})
        paths = [str(path) for path in images.get(identity, ())]
        reason = "no file with this image is known"
        for path in paths:
            try:
                image = Image(path, any_machine=True)
            except SymbolError as error:
                reason = str(error)
                continue
            if image.identity == identity:
                debug = request.get("debug", {}).get(identity)
                opened = self._open_images[identity] = _Opened(image, debug)
                while len(self._open_images) > _MOST_IMAGES:
                    self._open_images.popitem(last=False)[1].close()
                return opened
            image.close()
            reason = f"{path} is another build now"
        raise SymbolError(reason, path=paths[0] if paths else "")


class _Opened:
    """An image, and its symbolizer once it is needed."""

    def __init__(self, image: Image, debug: object) -> None:
        self.image = image
        self._separate = Image(str(debug), relocatable=True) if debug else _separate(image)
        self._symbolizer: Symbolizer | None = None

    @property
    def symbolizer(self) -> Symbolizer:
        if self._symbolizer is None:
            from agent.libraries import c_library
            from symbols.lines import Symbolizer

            # Nobody needs the C library's lines, and opening all its units takes 20 MB.
            library = c_library(os.path.basename(self.image.path))
            self._symbolizer = Symbolizer(self.image, debug=self._separate, names_only=library)
        return self._symbolizer

    def close(self) -> None:
        self.image.close()
        if self._separate is not None:
            self._separate.close()


def _frames(opened: _Opened, address: int) -> dict[str, Any]:
    frames = opened.symbolizer.frames(address)
    if not frames or (len(frames) == 1 and frames[0].function == "?"):
        return {"reason": "no function of this file holds the address"}
    return {"frames": [_row(frame) for frame in frames]}


def _twins(opened: _Opened, spot: Spot) -> dict[str, Any]:
    """Where else its function calls the same: stacks that differ in this frame alone have one id, and only
    the first of them was kept."""
    table = spot.module.table if spot.module is not None else None
    limits = table.function(spot.lookup) if table is not None else None
    if limits is None:
        return {}
    here = opened.symbolizer.frames(spot.lookup)
    lines = []
    for back in twins(opened.image, *limits, spot.lookup + 1):
        frames = opened.symbolizer.frames(back - 1)
        where = frames[0].location if frames else None
        if where is not None and here and where != here[0].location and [where.file, where.line] not in lines:
            lines.append([where.file, where.line])
    return {"others": lines} if lines else {}


def _separate(image: Image) -> Image | None:
    """The debug file of a stripped image where one is at hand; no server is asked for a stack."""
    if image.has_debug_info:
        return None
    from symbols.debugfiles import Searched, find_debug_file
    from symbols.fetch import Debuginfod

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
    from symbols.overlay import describe_bytes

    return {"lines": list(describe_bytes(layout, bytes.fromhex(memory)[:_MOST_MEMORY]))}


def _failed(kind: str, detail: str, path: str = "", remedy: str = "") -> dict[str, Any]:
    return {"error": {"kind": kind, "detail": detail, "path": path, "remedy": remedy}}


def serve(asked: Asked) -> None:
    """Give up all rights, then serve until stdin ends."""
    # What a library prints must not end up between the replies.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    lacks = enter(asked)
    worker = Worker(asked)
    for line in sys.stdin.buffer:
        try:
            request = json.loads(line)
        except ValueError:
            request = {}
        reply = worker.answer(request if isinstance(request, dict) else {})
        if lacks:
            reply["lacks"] = list(lacks)
        replies.write(json.dumps(reply, separators=(",", ":")) + "\n")
        replies.flush()

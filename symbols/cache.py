# Owns the plan cache: resolved plans on disk, by the image's identity, the profile and our own code. A hit is
# as good as a resolve: everything read from it is checked, and whatever does not check is resolved again.
# Must not resolve (resolve.py does) and never fails: a cache that cannot be used is no cache.
from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from symbols.cachefolder import CacheFolder, cache_folder, our_version
from symbols.errors import SymbolError
from symbols.hashes import sha256
from symbols.image import Image
from symbols.plan import ProbePlan
from symbols.serial import plan_from_json, plan_to_json

_MAGIC = b"afterfree-plan/2\n"
_SUFFIX = ".plan"


class Entries(Protocol):
    """As symbols.cachefolder.CacheFolder has them."""

    def get(self, name: str) -> bytes | None: ...

    def put(self, name: str, content: bytes) -> None: ...

    def used(self, name: str) -> None: ...

    def path(self, name: str) -> str: ...


@dataclass(slots=True)
class PlanCache:
    """Plans in one folder. Bounded: most_entries and most_bytes; the ones not used for longest go first."""

    folder: str = field(default_factory=cache_folder)
    most_entries: int = 256
    most_bytes: int = 64 << 20
    version: str = field(default_factory=our_version)
    given: Entries | None = None  # instead of the folder
    keeps: bool = False  # the last plan that went through is one to keep: of its image and inputs alone

    def load(self, image: Image, parts: Iterable[bytes]) -> ProbePlan | None:
        """The plan of this very image with these inputs, under its present path; None: resolve."""
        name, entries = self._name(image, parts), self.entries()
        text = entries.get(name)
        if text is None:
            return None
        try:
            body = json.loads(text)
            plan = plan_from_json({**body, "image": image.path}) if isinstance(body, dict) else None
        except (ValueError, RecursionError, SymbolError):
            return None
        if plan is None or plan.identity != image.identity or plan.segments != image.segments:
            return None
        entries.used(name)
        self.keeps = True
        return plan

    def store(self, image: Image, parts: Iterable[bytes], plan: ProbePlan) -> None:
        """Keep a plan. Readers see the old entry or the whole new one; a failure leaves no trace."""
        self.keeps = True
        text = json.dumps(plan_to_json(plan), separators=(",", ":"), sort_keys=True)
        self.entries().put(self._name(image, parts), text.encode())

    def path(self, image: Image, parts: Iterable[bytes]) -> str:
        """Where that plan lies, or would."""
        return self.entries().path(self._name(image, parts))

    def entries(self) -> Entries:
        """Where they are kept, checked but not understood."""
        return self.given or CacheFolder(
            magic=_MAGIC,
            suffix=_SUFFIX,
            folder=self.folder,
            most_entries=self.most_entries,
            most_bytes=self.most_bytes,
        )

    def _name(self, image: Image, parts: Iterable[bytes]) -> str:
        key = sha256(f"{self.version}\0{image.identity}\0{image.machine}".encode())
        for part in parts:
            key.update(len(part).to_bytes(8, "little") + part)
        return str(key.hexdigest()[:40])

"""Compiles the kernel side for another kernel, on this machine, into a folder of afterfree's program cache.

Only the compiler does not depend on the running kernel, and it alone would take minutes under emulation for
each program that is watched. The kernel there verifies what came out; `doctor` there compiles by itself.

    python -m tests.kernels.ahead FACTS.json CACHE PROGRAM=PROFILE … [truth:PROGRAM=] [doctor]
"""

from __future__ import annotations

import json
import os
import platform
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from probes import btf, loader, loader_bcc, readers, selfcheck
from probes.compiled import ProgramCache
from probes.session import SessionOptions, sizes
from symbols.plan import ProbePlan
from symbols.profile import load_profile
from symbols.resolve import resolve
from tests.integration.test_ground_truth import OPTIONS

DOCTOR = "doctor"  # instead of a program: what `doctor` tries, and watches itself with
TRUTH = "truth:"  # before a program: for the sizes that tests/integration/test_ground_truth.py asks for


def compiled(
    plan: ProbePlan | None,
    facts: dict[str, Any],
    cache: ProgramCache,
    session: SessionOptions | None = None,
) -> None:
    """Put what such a session (default: any user's) needs on the kernel of these facts (guest.facts) into the
    cache. plan: None for what is tried without any probe site (loader.tried)."""
    with (
        mock.patch.object(platform, "release", return_value=facts["release"]),
        mock.patch.object(platform, "version", return_value=facts["version"]),
        mock.patch.object(btf, "definitions", return_value=tuple(facts["definitions"])),
        mock.patch.object(loader, "possible_cpus", return_value=facts["cpus"]),
    ):
        options = sizes(session or SessionOptions()).fitted(facts["cpus"])
        request = loader_bcc.LoadRequest(
            image="",
            readers=readers.generate(plan).text if plan else "",
            programs=(),
            defines=loader.defines(plan, options) if plan else loader.plain_defines(),
            pids=(),
        )
        _, fds = loader_bcc.compiled(request, loader_bcc.flags(request), cache)
        for fd in fds.values():
            os.close(fd)  # some 60 MB of maps
        loader_bcc._keep.clear()


def main() -> int:
    facts, folder, *programs = sys.argv[1:]
    known = json.loads(Path(facts).read_text())
    cache = ProgramCache()
    cache._entries = replace(cache._entries, folder=folder, most_entries=4096, most_bytes=1 << 30)
    for word in programs:
        if word == DOCTOR:
            compiled(None, known, cache)
            compiled(selfcheck._plan(selfcheck._probed_offset()[0]), known, cache, selfcheck.OPTIONS)
            continue
        program, _, profile = word.removeprefix(TRUTH).partition("=")
        options = OPTIONS if word.startswith(TRUTH) else None
        try:
            compiled(resolve(program, load_profile(profile) if profile else None), known, cache, options)
        except Exception as error:  # the guest compiles it then, and it shows there
            print(f"{program}: {type(error).__name__}: {error}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

# Owns the names of what lies in a bundle and in a spooled case.
# Light: the daemon imports it. Must not read bundles (agent/forensics/bundle.py does, elsewhere).
from __future__ import annotations

import errno

SCHEMA = "afterfree.bundle/1"
SUFFIX = ".tar.zst"
MANIFEST = "manifest.json"
RECORDING = "recording.afrec"
FINDINGS = "findings.jsonl"
REPORT = "report.txt"
EXPLANATION = "explanation.json"
THREADS = "threads.json"
SLOTS = "slots.json"
MAPS = "maps"
CORE = "core"
CAPTURE = "capture.json"
CASE = "case.json"  # in a spooled case only: what the manifest takes over

NEWEST_DETAIL_FIRST = (CORE, RECORDING, CAPTURE, SLOTS, THREADS, "fdinfo", MAPS, FINDINGS, EXPLANATION)
"""What is given up, in this order, when the disk is full."""

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What a write to a full disk fails with."""

NO_ROOM = 75
"""Exit status of the bundler: no room for the bundle, the case stays (EX_TEMPFAIL, sysexits.h)."""

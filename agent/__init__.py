# The surfaces: what judges events and shows the verdicts. Imports probes and symbols, is imported by neither.
from __future__ import annotations

__version__ = "0.1.0.dev0"

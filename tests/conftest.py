"""Shared by all tests: Hypothesis profiles and the check behind the `bpf` marker."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

from tests.requirements import require_bpf

settings.register_profile(
    "fast", max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
settings.register_profile(
    "deep", max_examples=5000, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test marked `bpf` runs only where probes can be attached."""
    if item.get_closest_marker("bpf") is not None:
        require_bpf()

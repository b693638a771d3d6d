# Owns the `play` fixture: a playbook that fails when a finding is left over at the end.
from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.agent.correlator.playbook import Playbook


@pytest.fixture
def play() -> Iterator[Playbook]:
    playbook = Playbook()
    yield playbook
    playbook.finish()

# What an older kernel's verifier refuses: what can be done without is done without, and is named.
from __future__ import annotations

import pytest

from probes import loader, loader_bcc, preflight
from probes.compiled import Compiled, Program
from probes.errors import LoaderFailed

NAMES = ("af_enter_ctl", "af_signaled")
MADE = Compiled(maps={}, programs={name: Program(code=bytes(8), maps=()) for name in NAMES})


def refusing(monkeypatch: pytest.MonkeyPatch, refused: str) -> None:
    def load(name: str, _kind: int, _code: bytes, _types: object) -> int:
        if name == refused:
            raise LoaderFailed(f"the kernel refused the BPF program {name}")
        return 7

    monkeypatch.setattr(loader_bcc, "_program", load)


def test_without_a_program_that_is_optional_the_rest_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    refusing(monkeypatch, "af_signaled")
    programs = loader_bcc._verified(MADE, {}, set())
    assert programs == {"af_enter_ctl": 7}


def test_one_that_is_needed_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    refusing(monkeypatch, "af_enter_ctl")
    with pytest.raises(LoaderFailed, match="refused the BPF program af_enter_ctl"):
        loader_bcc._verified(MADE, {}, set())


def test_doctor_says_what_is_lost_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = "signal:signal_generate (its verifier refuses af_signaled)"
    monkeypatch.setattr(loader, "tried", lambda: (24, (refused, "syscalls:sys_enter_epoll_pwait2")))
    monkeypatch.setattr(preflight, "_not_root", lambda _name: None)
    check = preflight._bpf()
    assert check.ok
    assert f"not on this kernel: {refused}: no crash reports; syscalls:sys_enter_epoll_pwait2" in check.detail

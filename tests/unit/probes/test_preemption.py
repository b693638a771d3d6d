"""What doctor says of a kernel that may preempt a task within bpf(2), by its model and version."""

from __future__ import annotations

import platform

import pytest

from probes import preflight

DYNAMIC = "#1 SMP PREEMPT_DYNAMIC Debian 6.1.187-1"


def model(
    monkeypatch: pytest.MonkeyPatch, version: str, release: str, files: dict[str, str]
) -> preflight.Check:
    def read(path: object, **_: object) -> str:
        if str(path) not in files:
            raise FileNotFoundError(path)
        return files[str(path)]

    monkeypatch.setattr(platform, "version", lambda: version)
    monkeypatch.setattr(platform, "release", lambda: release)
    monkeypatch.setattr("pathlib.Path.read_text", read)
    return preflight._preemption()


@pytest.mark.parametrize(
    ("version", "files", "said"),
    [
        (DYNAMIC, {"/sys/kernel/debug/sched/preempt": "none (voluntary) full \n"}, "voluntary"),
        (DYNAMIC, {"/sys/kernel/debug/sched/preempt": "none voluntary (full) \n"}, "full"),
        (DYNAMIC, {"/proc/cmdline": "root=/dev/vda preempt=full quiet"}, "full"),
        (DYNAMIC, {"/proc/cmdline": "root=/dev/vda"}, "not known"),
        ("#1 SMP PREEMPT_RT Debian 6.12.117-1~deb12u1", {}, "rt"),
        ("#1 SMP Debian 5.15", {}, "voluntary"),
    ],
)
def test_the_model_is_what_the_kernel_says_of_itself(
    version: str, files: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert model(monkeypatch, version, "6.12.117+deb12-amd64", files).detail.split(":")[0] == said


def test_what_goes_unseen_is_counted_from_6_7_on(monkeypatch: pytest.MonkeyPatch) -> None:
    full = {"/sys/kernel/debug/sched/preempt": "none voluntary (full) \n"}
    new = model(monkeypatch, DYNAMIC, "6.12.117+deb12-amd64", full)
    assert new.ok
    assert "counted, and said at the end" in new.detail
    old = model(monkeypatch, DYNAMIC, "6.1.0-56-amd64", full)
    assert not old.ok
    assert not old.required
    assert "not counted by this kernel" in old.detail
    assert model(monkeypatch, "#1 SMP Debian", "6.1.0-56-amd64", {}).ok

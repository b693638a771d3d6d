"""What `make kernels` says, from what a guest wrote before it ended or was ended."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from probes import loader, loader_bcc, selfcheck
from probes.compiled import ProgramCache
from probes.session import LiveSession, SessionOptions
from tests.kernels import ahead, guest, images
from tests.kernels.__main__ import outcomes
from tests.kernels.images import KERNELS, Kernel

BY_NAME = {kernel.name: kernel for kernel in KERNELS}


def row(suite: str, name: str, *, passed: bool = True, seconds: int = 1) -> str:
    return json.dumps({"suite": suite, "name": name, "passed": passed, "words": "why", "seconds": seconds})


def over(suite: str, **more: int) -> str:
    return json.dumps({"suite": suite, "over": True, **more})


def test_a_line_for_each_suite_says_what_passed_and_what_did_not() -> None:
    rows = [row("doctor", "doctor"), over("doctor"), row("shapes", "a")]
    text = "\n".join([*rows, row("shapes", "b", passed=False, seconds=9), over("shapes")])
    doctor, shapes = outcomes(text, ["doctor", "shapes"])
    assert doctor.over
    assert not doctor.failed
    assert shapes.failed == (("b", "why"),)
    line = shapes.line(BY_NAME["6.12-full"], "6.12.117+deb12-amd64")
    assert " ".join(line.split()) == "6.12-full 6.12.117+deb12-amd64 shapes 1 of 2 passed: b (9 s)"


def test_a_guest_that_was_ended_has_told_what_it_did_and_not_that_it_was_all() -> None:
    text = row("shapes", "a") + "\n" + row("shapes", "b")[:20]
    shapes, demo = outcomes(text, ["shapes", "demo"])
    assert (shapes.passed, shapes.over) == (1, False)
    assert "not all of it" in shapes.line(BY_NAME["6.1"], "6.1.0-56-amd64")
    assert (demo.passed, demo.over) == (0, False)


def test_what_a_guest_had_to_compile_itself_is_said() -> None:
    text = "\n".join([row("truth", "a", seconds=90), over("truth", compiled=1)])
    (truth,) = outcomes(text, ["truth"])
    assert truth.line(BY_NAME["6.1"], "6.1.0-56-amd64").endswith("1 of 1 passed (90 s, 1 compiled there)")


@pytest.mark.parametrize("options", [SessionOptions(), ahead.OPTIONS], ids=["watch", "truth"])
def test_what_is_compiled_ahead_is_what_a_session_there_asks_for(
    options: SessionOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Asked(Exception):
        pass

    asked: list[tuple[str, ...]] = []

    def compile_it(request: loader_bcc.LoadRequest, *_: object) -> None:
        asked.append(request.defines)
        raise Asked

    def load(plan: object, *, options: loader.LoadOptions, **_: object) -> None:
        asked.append(loader.defines(selfcheck._plan(None), options.fitted(2)))
        raise Asked

    monkeypatch.setattr(loader_bcc, "compiled", compile_it)
    monkeypatch.setattr(loader, "load", load)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    facts = {"release": "6.1.0-56-amd64", "version": "#1", "cpus": 2, "definitions": []}
    with pytest.raises(Asked):
        ahead.compiled(selfcheck._plan(None), facts, ProgramCache(), options)
    with pytest.raises(Asked):
        LiveSession.open(selfcheck._plan(None), pids=[], follow=True, options=options)
    assert asked[0] == asked[1]


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("6.1", "linux-image-6.1.0-56-amd64-unsigned"),
        ("6.12", "linux-image-6.12.117+deb12-amd64-unsigned"),
        ("6.12-rt", "linux-image-6.12.117+deb12-rt-amd64-unsigned"),
    ],
)
def test_the_newest_image_of_a_series_is_taken(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = [
        f"linux-image-{version}{flavour}amd64{kind}"
        for version in ("6.1.0-9-", "6.1.0-56-", "6.1.0-47-", "6.12.99+deb12-", "6.12.117+deb12-")
        for flavour in ("", "rt-", "cloud-")
        for kind in ("", "-unsigned", "-dbg")
    ]
    monkeypatch.setattr(images, "_run", lambda _command, _folder: "\n".join(known))
    assert images._newest(BY_NAME[name]) == package


def test_sources_without_the_series_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_run", lambda _command, _folder: "")
    with pytest.raises(LookupError, match=r"no linux-image-6\.1\.\*-amd64-unsigned: run apt-get update"):
        images.unpacked(Kernel(name="6.1", series="6.1"))


def test_nothing_of_a_kernel_lies_outside_the_build_folder() -> None:
    assert Path(__file__).resolve().parents[2] / "build" in images.FOLDER.parents


def test_a_case_that_lost_events_is_counted_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [
        ([("a[x]", True, "1/1"), ("b[y]", False, "why")], "events were lost"),
        ([("b[y]", True, "2/2")], ""),
    ]
    asked: list[tuple[str, ...]] = []

    def counted(*selected: str) -> tuple[list[guest.Row], str]:
        asked.append(selected)
        return runs[len(asked) - 1]

    monkeypatch.setattr(guest, "_counted", counted)
    assert list(guest.truth("some")) == [
        ("a[x]", True, "1/1"),
        ("b[y]", True, "2/2\n\nthe first time:\nwhy"),
    ]
    assert asked[1] == ("tests/integration/test_ground_truth.py::b[y]",)


def test_a_count_that_is_wrong_without_a_loss_stays_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest, "_counted", lambda *_: ([("a[x]", False, "99/100")], "99/100"))
    assert list(guest.truth("some")) == [("a[x]", False, "99/100")]

"""What `make kernels` says, from what a guest wrote before it ended or was ended."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.kernels import images
from tests.kernels.__main__ import outcomes
from tests.kernels.images import KERNELS, Kernel

BY_NAME = {kernel.name: kernel for kernel in KERNELS}


def row(suite: str, name: str, *, passed: bool = True, seconds: int = 1) -> str:
    return json.dumps({"suite": suite, "name": name, "passed": passed, "words": "why", "seconds": seconds})


def over(suite: str) -> str:
    return json.dumps({"suite": suite, "over": True})


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

"""Kernel images from Debian's registry, unpacked under build/kernels: nothing is installed on this machine.

Owns which kernels are tried, and how each is booted.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "build" / "kernels"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One way to boot. series: what the package's version begins with; flavour: "" or "rt-"."""

    name: str
    series: str
    flavour: str = ""
    append: tuple[str, ...] = ()  # to the kernel's command line


KERNELS = (
    Kernel(name="6.1", series="6.1"),
    Kernel(name="6.1-full", series="6.1", append=("preempt=full",)),
    Kernel(name="6.12", series="6.12"),
    Kernel(name="6.12-full", series="6.12", append=("preempt=full",)),
    Kernel(name="6.12-rt", series="6.12", flavour="rt-"),
)
"""6.1 and 6.12 are Debian 12's and 13's; bookworm's registry has both."""


@dataclass(frozen=True, slots=True)
class Image:
    """An unpacked package. release: as `uname -r` says there."""

    release: str
    root: Path

    @property
    def vmlinuz(self) -> Path:
        return self.root / "boot" / f"vmlinuz-{self.release}"


def unpacked(kernel: Kernel) -> Image:
    """The newest image of the series, downloaded and unpacked where it is not there yet. Raises OSError,
    CalledProcessError, LookupError."""
    package = _newest(kernel)
    release = package.removeprefix("linux-image-").removesuffix("-unsigned")
    image = Image(release, FOLDER / "images" / release)
    ready = image.root / ".ready"
    if ready.exists():
        return image
    image.root.mkdir(parents=True, exist_ok=True)
    _run(["apt-get", "-qq", "-o", "Acquire::Retries=3", "download", package], image.root)
    for file in image.root.glob("*.deb"):
        _run(["dpkg", "-x", file.name, "."], image.root)
        file.unlink()
    _run(["depmod", "-b", ".", release], image.root)
    ready.touch()
    return image


def _newest(kernel: Kernel) -> str:
    """The package of the highest version; the unsigned one, since nothing here checks a signature."""
    # 6.1.0-56-amd64, 6.12.117+deb12-rt-amd64
    wanted = re.compile(
        rf"linux-image-{re.escape(kernel.series)}\.(\d+)(?:-(\d+)|\+deb\d+)-{kernel.flavour}amd64-unsigned"
    )
    names = _run(["apt-cache", "pkgnames", f"linux-image-{kernel.series}."], Path("/")).split()
    found = [(match, name) for name in names if (match := wanted.fullmatch(name))]
    if not found:
        raise LookupError(
            f"the apt sources have no linux-image-{kernel.series}.*-{kernel.flavour}amd64-unsigned: "
            "run apt-get update; bookworm and bookworm-security have 6.1 and 6.12"
        )
    return max(found, key=lambda item: [int(part or 0) for part in item[0].groups()])[1]


def _run(command: Sequence[str], folder: Path) -> str:
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return subprocess.run(
        command, cwd=folder, check=True, capture_output=True, text=True, env={**os.environ, "PATH": path}
    ).stdout

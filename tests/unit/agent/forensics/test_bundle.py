"""The bundle format: what is written comes back; what is hostile or damaged is refused by name."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from agent.forensics import bundle, layout
from agent.forensics.bundle import BadBundle, open_bundle, pack


def contents() -> dict[str, bundle.Content]:
    made: dict[str, bundle.Content] = {"report.txt": b"it crashed\n", "maps": b"m", "fdinfo/5": b"tfd"}
    manifest = {"schema": layout.SCHEMA, "files": bundle.listing(made), "notes": ["one"]}
    return {**made, layout.MANIFEST: json.dumps(manifest).encode()}


def packed(tmp: Path) -> Path:
    made = tmp / "crash-a.tar.zst"
    with made.open("wb", buffering=0) as out:
        pack(contents(), out, "crash-a")
    return made


def folder(tmp: Path) -> Path:
    made = tmp / "work"
    (made / "fdinfo").mkdir(parents=True)
    for name, content in contents().items():
        assert isinstance(content, bytes)
        (made / name).write_bytes(content)
    return made


def scratch(tmp: Path) -> Path:
    made = tmp / "scratch"
    made.mkdir()
    return made


def archive(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    path.write_bytes(zstandard.compress(raw.getvalue()))
    return path


def test_what_is_packed_comes_back(tmp_path: Path) -> None:
    opened = open_bundle(packed(tmp_path), scratch(tmp_path))
    assert sorted(opened.files) == ["fdinfo/5", "manifest.json", "maps", "report.txt"]
    assert opened.text("report.txt") == "it crashed\n"
    assert opened.damaged == ()


def test_the_manifest_comes_first_below_one_directory(tmp_path: Path) -> None:
    with packed(tmp_path).open("rb") as file:
        raw = zstandard.ZstdDecompressor().stream_reader(file).read()
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        names = tar.getnames()
    assert names[0] == "crash-a/manifest.json"
    assert {name.partition("/")[0] for name in names} == {"crash-a"}


def test_an_unpacked_folder_opens_too(tmp_path: Path) -> None:
    opened = open_bundle(folder(tmp_path), scratch(tmp_path))
    assert opened.manifest["notes"] == ["one"]


def test_damage_is_named(tmp_path: Path) -> None:
    made = folder(tmp_path)
    (made / "report.txt").write_text("it did not\n")
    (made / "maps").unlink()
    (made / "extra").write_text("x")
    damaged = open_bundle(made, scratch(tmp_path)).damaged
    assert set(damaged) == {
        "maps is missing",
        "report.txt is not what was written",
        "extra is not what was written",
    }


def _link(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return info


HOSTILE: dict[str, Callable[[Path], Path]] = {
    "not zstd": lambda path: (path.write_bytes(b"hello") and path) or path,
    "empty": lambda path: (path.write_bytes(b"") and path) or path,
    "not tar": lambda path: (path.write_bytes(zstandard.compress(b"x" * 2000)) and path) or path,
    "upwards": lambda path: archive(path, (tarfile.TarInfo("a/../../x"), b"x")),
    "absolute": lambda path: archive(path, (tarfile.TarInfo("/etc/cron.d/x"), b"x")),
    "symbolic link": lambda path: archive(path, (_link("a/core"), b"")),
    "escape codes": lambda path: archive(path, (tarfile.TarInfo("a/\x1b[31m"), b"x")),
    "no manifest": lambda path: archive(path, (tarfile.TarInfo("a/report.txt"), b"x")),
    "broken manifest": lambda path: archive(path, (tarfile.TarInfo("a/manifest.json"), b"{")),
    "deep manifest": lambda path: archive(path, (tarfile.TarInfo("a/manifest.json"), b"[" * 100_000)),
    "other format": lambda path: archive(path, (tarfile.TarInfo("a/manifest.json"), b'{"schema": "x/9"}')),
    "many files": lambda path: archive(path, *((tarfile.TarInfo(f"a/f{n}"), b"") for n in range(300))),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_is_refused(tmp_path: Path, what: str) -> None:
    path = HOSTILE[what](tmp_path / "crash-x.tar.zst")
    room = scratch(tmp_path)
    with pytest.raises(BadBundle) as caught:
        open_bundle(path, room)
    none = what in ("not zstd", "empty")
    assert ("not a bundle" if none else "cannot read the bundle") in caught.value.title
    assert all(file.parent == room for file in room.rglob("*"))


def test_a_small_file_that_unpacks_to_a_huge_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "MOST_BYTES", 1 << 20)
    path = archive(tmp_path / "crash-x.tar.zst", (tarfile.TarInfo("a/core"), bytes(2 << 20)))
    assert path.stat().st_size < 10_000
    with pytest.raises(BadBundle, match="unpacks to more than"):
        open_bundle(path, scratch(tmp_path))


def test_a_folder_that_is_no_bundle_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(BadBundle, match="holds no manifest"):
        open_bundle("/", scratch(tmp_path))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadBundle, match="No such file"):
        open_bundle(tmp_path / "none.tar.zst", scratch(tmp_path))

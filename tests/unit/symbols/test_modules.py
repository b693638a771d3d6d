"""Which image lies where: a program that maps its own file a second time, as data."""

from __future__ import annotations

from symbols.modules import Mapping, load_bias
from symbols.plan import Segment


def _segment(vaddr: int, offset: int, *, executable: bool = False) -> Segment:
    return Segment(vaddr=vaddr, offset=offset, filesz=0x1000, memsz=0x1000, executable=executable)


SEGMENTS = (_segment(0, 0), _segment(0x2000, 0x1000, executable=True), _segment(0x4000, 0x2000))


def _loaded(base: int) -> list[Mapping]:
    return [Mapping(base + s.vaddr, base + s.vaddr + 0x1000, s.offset, "/bin/x") for s in SEGMENTS]


def test_the_loaded_image_wins_over_a_mapping_of_the_whole_file() -> None:
    """Zig's crash handler maps the executable to read its debug information, often at a lower address."""
    whole = Mapping(0x7000_0000, 0x7000_9000, 0, "/bin/x")
    loaded = _loaded(0x7F00_0000_0000)
    assert load_bias(SEGMENTS, [whole, *loaded]) == 0x7F00_0000_0000
    assert load_bias(SEGMENTS, [*loaded, whole]) == 0x7F00_0000_0000


def test_an_image_at_its_own_addresses() -> None:
    assert load_bias(SEGMENTS, _loaded(0)) == 0


def test_mappings_of_another_file() -> None:
    assert load_bias(SEGMENTS, [Mapping(0x1000, 0x2000, 0x55000, "/bin/x")]) is None
    assert load_bias(SEGMENTS, []) is None

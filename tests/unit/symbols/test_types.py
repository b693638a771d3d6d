"""Layouts against gdb's offsets, and what freed bytes look like."""

from __future__ import annotations

import pytest

from symbols.image import Image
from symbols.overlay import describe_bytes
from symbols.plan import SlotLayout
from symbols.profile import parse_profile
from symbols.resolve import resolve
from symbols.types import Types
from tests.unit.symbols.builds import C_PROFILE, ZIG_PROFILE, build_c, build_zig

MODES = ["Debug", "ReleaseSafe"]


@pytest.mark.parametrize("mode", MODES)
def test_zig_fields(mode: str) -> None:
    with Image(build_zig(mode)) as image:
        types = Types(image)
        http = types.find("*HTTPConn")
        assert http is not None
        assert http.size == 0x300
        assert types.field_at(http, 0x2F8) == "_state"
        assert types.field_at(http, 0x10) == "pad[2]"
        assert types.field_at(http, 0x300) is None
        conn = types.find("pool.Conn(*)")
        assert conn is not None
        assert conn.size == 32
        protocol = types.members(conn)[0]
        assert (protocol.name, protocol.offset, protocol.type.kind) == ("protocol", 0, "tagged")
        assert [(m.name, m.tag) for m in types.members(protocol.type)] == [("http", 0), ("websocket", 1)]
        tree = types.decode(conn, (0x1234).to_bytes(8, "little") + bytes(24))
        assert tree.children[0].children[1].text == "0x1234"


@pytest.mark.parametrize("mode", MODES)
def test_a_freed_zig_slot(mode: str) -> None:
    layout = resolve(build_zig(mode), parse_profile(ZIG_PROFILE)).slot
    lines = describe_bytes(layout, bytes(8) + b"\xaa" * 24)
    assert lines[0] == "protocol = .http(*pool.HTTPConn) 0x0 (tag byte 0xaa)  ← free-list link (null)"
    assert any(line == "next = 0xaaaaaaaaaaaaaaaa  ← undefined fill" for line in lines)
    live = describe_bytes(layout, (0x7F00).to_bytes(8, "little") + bytes(24))
    assert live[0] == "protocol = .http(*pool.HTTPConn) 0x7f00  ← free-list link, if freed"
    assert describe_bytes(layout, b"") == ()
    assert describe_bytes(layout, bytes(4))[0].startswith("protocol = (tag unreadable) ?")


def test_c_union_and_unknown_layout() -> None:
    layout = resolve(build_c("-g", "-O2"), parse_profile(C_PROFILE)).slot
    assert (layout.object_offset, layout.object_field, layout.object_type) == (0, "u.session", "session")
    lines = describe_bytes(layout, bytes(24))
    assert lines[0].endswith("← free-list link (null)")
    assert lines[1] == "fd = 0"
    bare = SlotLayout(
        type_name="?", size=0, freelist_offset=0, object_offset=None, object_field=None, object_type=None
    )
    assert describe_bytes(bare, bytes(16))[0] == "+0x00 = 0x0  ← free-list link (null)"

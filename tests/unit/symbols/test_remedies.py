"""What helps an instance that has no probe: named with its reason, in the words of its language."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from agent.plan_text import plan_lines
from agent.text import plain
from symbols.errors import NoDestroySite
from symbols.profile import parse_profile
from symbols.remedies import remedy
from symbols.resolve import resolve
from symbols.serial import plan_to_json

INLINED = "parameter 'ptr' was optimized out (no location)"


@pytest.mark.parametrize(
    ("role", "reason", "file", "words"),
    [
        (
            "destroy",
            INLINED,
            "/src/worker.zig",
            ("keep destroy out of line", "`noinline fn`", "slot.destroy"),
        ),
        ("dispatch", INLINED, "loop.c", ("noipa", "each handled event", "slot.dispatch")),
        ("destroy", "copies of destroy were merged in part: …", "a.c", ("-fno-crossjumping", "-fno-ipa-icf")),
        ("create", "may have instances in split debug information that is not there: x", "", (".dwo",)),
        ("create", "it is assigned more than once", "pool.rs", ("#[inline(never)]", "slot.create")),
    ],
)
def test_each_reason_has_a_remedy(role: str, reason: str, file: str, words: tuple[str, ...]) -> None:
    text = remedy(role, "heap.memory_pool.Extra(worker.Conn).destroy", reason, file)
    assert all(word in text for word in words), text


SOURCE = """
#include <stdlib.h>
struct conn { int fd, dead; void *next; };
static int handled;
static inline __attribute__((always_inline)) void on_event(struct conn *c) { (void)c; handled += 1; }
__attribute__((noinline)) struct conn *conn_new(void) { return calloc(1, sizeof(struct conn)); }
__attribute__((noinline)) void conn_free(struct conn *c) { c->dead = 1; free(c); }
int main(int n, char **v) {
    struct conn *c = conn_new();
    for (int i = 0; i < n; i++) on_event(v[i] ? NULL : c);
    conn_free(c);
    return handled;
}
"""


PROFILE = """
name = "t"
[slot]
type = "conn"
create = { function = "conn_new", returns = "slot" }
destroy = { function = "%s", slot = "c" }
dispatch = { function = "on_event", object = "c" }
[userdata]
kind = "pointer"
"""


def _plan(tmp_path: Path, destroy: str) -> str:
    source, exe = tmp_path / "loop.c", tmp_path / "loop"
    source.write_text(SOURCE)
    subprocess.run(["gcc", "-O2", "-g", "-o", str(exe), str(source)], check=True)
    return plain(plan_lines(plan_to_json(resolve(str(exe), parse_profile(PROFILE % destroy)))))


def test_a_dispatch_that_was_inlined_away_is_told_with_what_keeps_it(tmp_path: Path) -> None:
    text = " ".join(_plan(tmp_path, "conn_free").split())
    assert "on_event" in text
    assert "remedy keep on_event out of line" in text or "noinline keeps it" in text, text
    assert "noipa" in text or "noinline" in text


def test_no_destroy_that_can_be_probed_names_what_keeps_one(tmp_path: Path) -> None:
    with pytest.raises(NoDestroySite) as caught:
        _plan(tmp_path, "on_event")
    assert "noinline" in caught.value.remedy, caught.value.remedy

"""Reference counts: where the profile says they lie, and code that seems to count where it says nothing."""

from __future__ import annotations

import re

import pytest

from symbols.errors import ProfileError
from symbols.plan import ProbePlan, Role
from symbols.profile import parse_profile
from symbols.resolve import resolve
from symbols.serial import plan_from_json, plan_to_json
from tests.targets.build import C_MODES, SOURCE_DIR
from tests.unit.symbols.builds import build_c, build_cserver, build_rust, build_zig
from tests.unit.symbols.test_ties import C_FLAGS, CPP_FLAGS, shown


def plan_of(
    compiler: str, level: str, function: str, more: str = "", *, slot: str = "o", source: str = "counted.c"
) -> ProbePlan:
    text = f"""
    name = "counted"
    [slot]
    destroy = {{ function = "{function}", slot = "{slot}"{more} }}
    """
    plan = resolve(build_c("-g", level, compiler=compiler, source=source), parse_profile(text))
    assert plan_from_json(plan_to_json(plan)) == plan
    assert plan.complete(Role.DESTROY)
    return plan


@pytest.mark.parametrize(("compiler", "level"), [*C_FLAGS, ("gcc", "-O1"), ("gcc", "-O3"), ("clang", "-Os")])
def test_a_destroy_that_seems_to_count(compiler: str, level: str) -> None:
    for function in ("plain", "last_first", "checked", "atomic", "builtin", "guarded", "locked", "by_helper"):
        plan = plan_of(compiler, level, function)
        assert plan.destroy_counts, function
        field = "shared" if function == "atomic" else "refs"
        assert f'count = "{field}"' in shown(plan)
    for function in ("always", "helped", "null_is_fine", "population", "next_life", "backwards", "by_state"):
        plan = plan_of(compiler, level, function)
        assert not plan.destroy_counts, function
        assert "count = " not in shown(plan)


@pytest.mark.parametrize(("compiler", "level"), CPP_FLAGS)
def test_atomic_counts_of_cpp(compiler: str, level: str) -> None:
    for function in ("unref", "drop"):
        plan = plan_of(compiler, level, function, slot="this", source="counted.cpp")
        assert plan.destroy_counts, function
        said = re.search(r'say count = "(.+?)"', shown(plan))
        assert said is not None
        more = f', count = "{said[1]}"'
        plan = plan_of(compiler, level, function, more, slot="this", source="counted.cpp")
        assert (plan.slot.count_offset, plan.slot.count_size) == ((0, 4) if function == "unref" else (16, 8))
    assert not plan_of(compiler, level, "destroy", slot="conn", source="counted.cpp").destroy_counts


@pytest.mark.parametrize("mode", C_MODES)
def test_the_bundled_server_does_not_count(mode: str) -> None:
    text = (SOURCE_DIR / "cserver.toml").read_text()
    assert not resolve(build_cserver(mode), parse_profile(text)).destroy_counts


@pytest.mark.parametrize(("compiler", "level"), C_FLAGS)
@pytest.mark.parametrize(
    ("path", "offset", "size"), [("refs", 8, 4), ("shared", 12, 4), ("generation", 16, 8), ("id", 0, 8)]
)
def test_where_the_count_lies(compiler: str, level: str, path: str, offset: int, size: int) -> None:
    plan = plan_of(compiler, level, "plain", f", count = '{path}'")
    assert (plan.slot.count_field, plan.slot.count_offset, plan.slot.count_size) == (path, offset, size)
    assert plan.slot.frees_at == 1
    assert not plan.destroy_counts  # the profile says it: no guess is needed
    assert f"references counted in {path} at +{offset:#x} (frees at 1)" in shown(plan)


@pytest.mark.parametrize(("compiler", "level"), CPP_FLAGS)
def test_counts_in_wrappers_and_bases(compiler: str, level: str) -> None:
    plan = plan_of(
        compiler, level, "unref", ", count = 'refs', frees_at = 0", slot="this", source="counted.cpp"
    )
    assert (plan.slot.count_offset, plan.slot.count_size, plan.slot.frees_at) == (0, 4, 0)
    plan = plan_of(compiler, level, "unref", ", count = 'wide'", slot="this", source="counted.cpp")
    assert (plan.slot.count_offset, plan.slot.count_size) == (16, 8)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("ref", "'obj' has no field 'ref'; it has: id, refs, shared, generation, next, lock"),
        ("next", "'next' is of type '*obj', which is no integer that could count references"),
        ("refs.x", "has no field 'x'"),
    ],
)
def test_a_field_that_is_not_there(path: str, said: str) -> None:
    with pytest.raises(ProfileError) as caught:
        plan_of("gcc", "-O2", "plain", f", count = '{path}'")
    assert caught.value.key == "slot.destroy.count"
    assert said in caught.value.detail


@pytest.mark.parametrize("mode", ["Debug", "ReleaseSafe", "ReleaseFast"])
def test_counts_of_zig(mode: str) -> None:
    text = "name = 'x'\n[slot]\ntype = 'Conn'\ndestroy = { function = '*.Conn.unref', slot = 'self'%s }"
    path = build_zig(mode, "counted.zig")
    plan = resolve(path, parse_profile(text % ", count = 'refs'"))
    assert plan.complete(Role.DESTROY)
    (field,) = (field for field in plan.slot.fields if field.path.startswith("refs"))
    assert (plan.slot.count_offset, plan.slot.count_size) == (field.offset, 4)
    assert plan.warnings == ()  # Conn is counted.Conn
    assert resolve(path, parse_profile(text % "")).destroy_counts


@pytest.mark.parametrize("flags", [(), ("-O",)])
def test_counts_of_rust(flags: tuple[str, ...]) -> None:
    text = "name = 'x'\n[slot]\ntype = 'Conn'\ndestroy = { function = '%s', slot = 'conn'%s }"
    path = build_rust(*flags, source="counted.rs")
    for name in ("unref", "Conn::unref", "counted::Conn::unref"):
        plan = resolve(path, parse_profile(text % (name, ", count = 'refs'")))
        assert plan.complete(Role.DESTROY)
        assert plan.slot.count_size == 8
    assert resolve(path, parse_profile(text % ("Conn::unref", ""))).destroy_counts

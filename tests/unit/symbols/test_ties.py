"""How the object of a dispatch is tied to its slot, on binaries of three compilers."""

from __future__ import annotations

import pytest

from agent.plan_text import plan_lines
from symbols.errors import NoDestroySite, ProfileError
from symbols.plan import ProbePlan, Role
from symbols.profile import parse_profile
from symbols.resolve import resolve
from symbols.serial import plan_from_json, plan_to_json
from tests.unit.symbols.builds import build_c

C_FLAGS = [("gcc", "-O0"), ("gcc", "-O2"), ("clang", "-O0"), ("clang", "-O2")]
CPP_FLAGS = [("g++", "-O0"), ("g++", "-O2"), ("clang++", "-O0"), ("clang++", "-O2")]


def plan_of(
    compiler: str, level: str, dispatch: str, *, destroy: str = "", source: str = "ties.c", kind: str = "slot"
) -> ProbePlan:
    destroy = destroy or "function = 'slot_destroy', slot = 's'"
    text = f"""
    name = "ties"
    [slot]
    type = "{kind}"
    destroy = {{ {destroy} }}
    dispatch = {{ {dispatch} }}
    """
    plan = resolve(build_c("-g", level, compiler=compiler, source=source), parse_profile(text))
    assert plan_from_json(plan_to_json(plan)) == plan
    return plan


def shown(plan: ProbePlan) -> str:
    return "\n".join("".join(span.text for span in row) for row in plan_lines(plan_to_json(plan)))


@pytest.mark.parametrize(("compiler", "level"), C_FLAGS)
@pytest.mark.parametrize(
    ("function", "argument", "delta", "text"),
    [
        ("on_slot", "s", 0, "is the slot (slot)"),
        ("on_const", "s", 0, "is the slot (slot)"),
        ("on_watcher", "w", 16, "lies at +0x10 of the slot (watcher)"),
        ("on_void", "arg", 0, "is the slot (slot)"),
        ("on_void_late", "arg", 0, "is the slot (slot)"),
        ("on_void_watcher", "arg", 16, "lies at +0x10 of the slot (watcher)"),
    ],
)
def test_the_object_is_the_slot_or_lies_in_it(
    compiler: str, level: str, function: str, argument: str, delta: int, text: str
) -> None:
    """A list of live slots is no tie: the type of the object decides."""
    plan = plan_of(compiler, level, f"function = '{function}', object = '{argument}'")
    assert plan.complete(Role.DISPATCH)
    assert (plan.slot.object_is_slot, plan.slot.object_delta, plan.slot.object_offset) == (True, delta, None)
    assert plan.tied
    assert text in shown(plan)
    assert plan.slot.size == 40
    assert plan.slot.embedded == (16,)


@pytest.mark.parametrize(("compiler", "level"), C_FLAGS)
def test_the_slot_points_to_the_object(compiler: str, level: str) -> None:
    plan = plan_of(compiler, level, "function = 'on_session', object = 's'")
    assert (plan.slot.object_is_slot, plan.slot.object_offset, plan.slot.object_field) == (
        False,
        32,
        "session",
    )
    assert plan.complete(Role.DISPATCH)


@pytest.mark.parametrize(("compiler", "level"), C_FLAGS)
def test_of_several_pointers_the_one_that_was_taken_is_said(compiler: str, level: str) -> None:
    destroy = "function = 'peer_destroy', slot = 'p'"
    plan = plan_of(compiler, level, "function = 'on_event', object = 'e'", destroy=destroy, kind="peer")
    (warning,) = plan.warnings
    assert "'peer' has several pointers to 'event'; 'read' is taken. If it is another (write)" in warning
    said = "function = 'on_event', object = 'e', is = 'slot.write'"
    plan = plan_of(compiler, level, said, destroy=destroy, kind="peer")
    assert (plan.slot.object_offset, plan.warnings) == (8, ())


@pytest.mark.parametrize(("compiler", "level"), C_FLAGS)
@pytest.mark.parametrize(
    ("function", "argument", "reason"),
    [
        ("on_stranger", "s", "points to 'stranger', which is not 'slot'"),
        ("on_opaque", "arg", "'arg' is a void *"),
        ("on_next", "arg", "'arg' is a void *"),  # what it has of type slot is another one
    ],
)
def test_what_cannot_be_tied_is_not_probed(
    compiler: str, level: str, function: str, argument: str, reason: str
) -> None:
    plan = plan_of(compiler, level, f"function = '{function}', object = '{argument}'")
    assert not list(plan.by_role(Role.DISPATCH))
    assert not plan.tied
    (lost,) = plan.unprobed
    assert lost.role is Role.DISPATCH
    assert lost.reason.startswith("cannot be tied to a slot: ")
    assert reason in lost.reason
    assert 'is = "slot"' in lost.reason


@pytest.mark.parametrize(("compiler", "level"), C_FLAGS)
def test_the_profile_ties_what_the_types_do_not(compiler: str, level: str) -> None:
    plan = plan_of(compiler, level, "function = 'on_opaque', object = 'arg', is = 'slot'")
    assert (plan.slot.object_is_slot, plan.slot.object_delta) == (True, 0)
    plan = plan_of(compiler, level, "function = 'on_opaque', object = 'arg', is = 'slot.session'")
    assert (plan.slot.object_is_slot, plan.slot.object_offset) == (False, 32)
    assert plan.complete(Role.DISPATCH)
    for wrong, said in (
        ("nothing", "it has: next, pad, w, session"),
        ("w", "'watcher', which is no pointer"),
    ):
        with pytest.raises(ProfileError) as caught:
            plan_of(compiler, level, f"function = 'on_opaque', object = 'arg', is = 'slot.{wrong}'")
        assert caught.value.key == "slot.dispatch.is"
        assert said in caught.value.detail


@pytest.mark.parametrize(("compiler", "level"), C_FLAGS)
def test_a_destroy_that_takes_a_void_pointer(compiler: str, level: str) -> None:
    """The profile's type says what the slot is."""
    plan = plan_of(
        compiler,
        level,
        "function = 'on_watcher', object = 'w'",
        destroy="function = 'raw_destroy', slot = 'p'",
    )
    assert (plan.slot.size, plan.slot.object_is_slot, plan.slot.object_delta) == (40, True, 16)


@pytest.mark.parametrize(("compiler", "level"), CPP_FLAGS)
@pytest.mark.parametrize(
    ("function", "delta"),
    [("on_event", 16), ("on_timer", 0), ("close_now", 0), ("on_tls", 0), ("app::net::Handler::on_event", 16)],
)
def test_base_and_derived_classes(compiler: str, level: str, function: str, delta: int) -> None:
    plan = plan_of(
        compiler,
        level,
        f"function = '{function}', object = 'this'",
        destroy="function = 'app::net::drop', slot = 'conn'",
        source="ties.cpp",
        kind="Conn",
    )
    assert (plan.slot.object_is_slot, plan.slot.object_delta, plan.slot.object_offset) == (True, delta, None)
    assert plan.complete(Role.DISPATCH)


@pytest.mark.parametrize(("compiler", "level"), CPP_FLAGS)
def test_a_slot_that_is_the_second_base_class(compiler: str, level: str) -> None:
    """The object begins before the slot."""
    plan = plan_of(
        compiler,
        level,
        "function = 'close_now', object = 'this'",
        destroy="function = 'on_event', slot = 'this'",
        source="ties.cpp",
        kind="Handler",
    )
    assert (plan.slot.object_is_slot, plan.slot.object_delta) == (True, -16)


@pytest.mark.parametrize(("compiler", "level"), C_FLAGS)
@pytest.mark.parametrize(("offset", "bytes_"), [("16", 16), ("'w'", 16), ("'w.cb'", 24), ("'session'", 32)])
def test_userdata_points_into_the_slot(compiler: str, level: str, offset: str, bytes_: int) -> None:
    text = f"""
    name = "ties"
    [slot]
    destroy = {{ function = "slot_destroy", slot = "s" }}
    [userdata]
    offset = {offset}
    """
    plan = resolve(build_c("-g", level, compiler=compiler, source="ties.c"), parse_profile(text))
    assert plan_from_json(plan_to_json(plan)) == plan
    assert plan.userdata.offset == bytes_
    assert plan.warnings == ()
    assert f"userdata points to +{bytes_:#x} of the slot" in shown(plan)


def test_userdata_that_cannot_point_into_the_slot() -> None:
    path = build_c("-g", "-O2", source="ties.c")
    start = "name = 'x'\n[slot]\ndestroy = { function = 'slot_destroy', slot = 's' }\n[userdata]\n"
    with pytest.raises(ProfileError) as caught:
        resolve(path, parse_profile(f"{start}offset = 'watch'"))
    assert caught.value.key == "userdata.offset"
    assert "'slot' has no field 'watch'; it has: next, pad, w, session" in caught.value.detail
    (warning,) = resolve(path, parse_profile(f"{start}offset = 64")).warnings
    assert "userdata.offset is 64, but 'slot' has 40 bytes" in warning


@pytest.mark.parametrize(("compiler", "level"), C_FLAGS)
def test_a_wrong_parameter_name_is_answered_with_the_right_ones(compiler: str, level: str) -> None:
    said = "slot_destroy has no parameter 'x'; it has: s (struct slot *)"
    with pytest.raises(NoDestroySite) as caught:
        plan_of(
            compiler,
            level,
            "function = 'on_slot', object = 's'",
            destroy="function = 'slot_destroy', slot = 'x'",
        )
    assert said in caught.value.detail
    assert 'instead of slot = "x"' in caught.value.remedy
    plan = plan_of(compiler, level, "function = 'on_slot', object = 'c'")
    (lost,) = plan.unprobed
    assert lost.reason == "on_slot has no parameter 'c'; it has: s (struct slot *)"


def test_a_destroy_that_is_narrowed_to_nothing() -> None:
    with pytest.raises(NoDestroySite) as caught:
        plan_of(
            "gcc",
            "-O2",
            "function = 'on_slot', object = 's'",
            destroy="function = 'slot_destroy', slot = 's', in = 'nobody'",
        )
    assert "1 left out by in, not_in and file" in caught.value.detail


@pytest.mark.parametrize(("compiler", "level"), C_FLAGS)
def test_types_that_only_a_typedef_names(compiler: str, level: str) -> None:
    text = """
    name = "ties"
    [slot]
    type = "anon_t"
    create = { function = "anon_create", returns = "slot" }
    destroy = { function = "anon_destroy", slot = "a" }
    dispatch = { function = "on_anon", object = "a" }
    """
    plan = resolve(build_c("-g", level, compiler=compiler, source="ties.c"), parse_profile(text))
    assert plan.warnings == ()
    assert plan.unprobed == ()
    assert (plan.slot.type_name, plan.slot.size, plan.slot.object_is_slot) == ("anon_t", 24, True)
    destroy = "function = 'slot_t_destroy', slot = 's'"
    for kind in ("slot_t", "slot"):
        plan = plan_of(compiler, level, "function = 'on_slot', object = 's'", destroy=destroy, kind=kind)
        assert plan.warnings == ()
        assert plan.slot.object_is_slot
    raw = "function = 'raw_destroy', slot = 'p'"
    plan = plan_of(compiler, level, "function = 'on_anon', object = 'a'", destroy=raw, kind="anon_t")
    assert (plan.slot.type_name, plan.slot.size, plan.slot.object_is_slot) == ("anon_t", 24, True)

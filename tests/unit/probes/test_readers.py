# The generated argument readers, and what no reader can be made for.
from __future__ import annotations

import ctypes
import dataclasses

import pytest

from probes import abi
from probes.errors import Unsupported
from probes.loader import (
    LIFETIME_BYTES,
    MIN_RECORDS,
    RECORDER_BYTES,
    LoadOptions,
    defines,
    plain_defines,
)
from probes.readers import generate
from symbols.plan import (
    MAX_STEPS,
    Add,
    Addr,
    ArgSource,
    Deref,
    InstanceKind,
    Price,
    ProbePlan,
    Role,
    Site,
    SlotLayout,
    Userdata,
)


def site(index: int, role: Role, source: ArgSource, offset: int = 0x1000) -> Site:
    return Site(
        index=index,
        role=role,
        function="destroy",
        kind=InstanceKind.INLINED,
        address=Addr(0x400000 + offset + index),
        file_offset=offset + index,
        enclosing="run",
        call_site=None,
        declared_at=None,
        instruction="nop",
        price=Price.EMULATED,
        argument="ptr",
        source=source,
    )


def plan(*sites: Site, machine: str = "x86_64", userdata: Userdata | None = None) -> ProbePlan:
    return ProbePlan(
        image="/bin/x",
        identity="sha256:0",
        machine=machine,
        pie=False,
        profile="test",
        guard=None,
        userdata=userdata or Userdata(reserved=(0, 1, 2)),
        slot=SlotLayout(
            type_name="T", size=40, freelist_offset=0, object_offset=8, object_field="o", object_type="O"
        ),
        segments=(),
        sites=sites,
        unprobed=(),
    )


RBX = ArgSource(register="rbx")


def test_equal_sources_of_a_role_share_one_reader() -> None:
    made = generate(plan(site(0, Role.DESTROY, RBX), site(1, Role.DESTROY, RBX), site(2, Role.CREATE, RBX)))
    assert made.programs[0][1] == made.programs[1][1] != made.programs[2][1]
    assert [offset for offset, _ in made.programs] == [0x1000, 0x1001, 0x1002]
    assert made.text.count("int af_site_") == 2
    assert "ctx->bx" in made.text
    assert "af_hit_destroy(ctx, ctx->ip, v0, 0)" in made.text
    assert "af_hit_create(ctx, ctx->ip, v0)" in made.text


def test_a_destroy_says_whether_it_is_probed_at_its_functions_entry() -> None:
    """There the return address is on top of the stack: it tells when the call is over."""
    inside = site(0, Role.DESTROY, RBX)
    made = generate(plan(inside, dataclasses.replace(site(1, Role.DESTROY, RBX), at_entry=True)))
    assert "af_hand_on(ctx, 1, ctx->ip, v0, 0)" in made.text
    assert "af_hand_on(ctx, 1, ctx->ip, v0, 1)" in made.text
    assert made.programs[0][1] != made.programs[1][1]


def test_a_hit_at_a_branch_is_told_as_the_place_it_leads_to() -> None:
    made = generate(plan(dataclasses.replace(site(0, Role.DESTROY, RBX), stands_for=Addr(0x401010))))
    assert "af_hit_destroy(ctx, ctx->ip + 0x10ull, v0, 0)" in made.text


def test_many_ways_to_an_argument_are_verified_as_one_program() -> None:
    """Each large program costs the verifier a tenth of a second; a destroy may have dozens of copies."""
    ways = [site(n, Role.DESTROY, ArgSource(register="rbx", steps=(Add(n),))) for n in range(20)]
    made = generate(plan(*ways, site(30, Role.CREATE, RBX)))
    assert made.text.count("af_hit_destroy(") == 1
    assert made.text.count("af_hand_on(ctx, 1, ") == 20
    assert "af_hit_create(ctx, ctx->ip, v0)" in made.text
    assert len({name for _, name in made.programs}) == 21


def test_steps_become_reads_in_order() -> None:
    source = ArgSource(register="rbp", steps=(Add(-0x20), Deref(8), Add(0x10), Deref(4)))
    text = generate(plan(site(0, Role.DESTROY, source))).text
    order = [text.index(part) for part in ("ctx->bp", f"{(1 << 64) - 32:#x}ull", "u64 m", "0x10ull", "u32 m")]
    assert order == sorted(order)
    assert text.count("bpf_probe_read_user") == 2


def test_a_constant_needs_no_register() -> None:
    assert "u64 v0 = 0x1234ull;" in generate(plan(site(0, Role.DESTROY, ArgSource(constant=0x1234)))).text


@pytest.mark.parametrize(
    "source",
    [
        ArgSource(register="xmm0"),
        ArgSource(register="rbx; }"),
        ArgSource(register="rbx", steps=(Deref(3),)),
        ArgSource(register="rbx", steps=(Add(1),) * (MAX_STEPS + 1)),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(source: ArgSource) -> None:
    with pytest.raises(Unsupported):
        generate(plan(site(0, Role.DESTROY, source)))


def test_other_machines_are_refused() -> None:
    with pytest.raises(Unsupported, match="aarch64"):
        generate(plan(site(0, Role.DESTROY, RBX), machine="aarch64"))


def test_the_plan_becomes_compiler_definitions() -> None:
    made = defines(
        plan(
            site(0, Role.CREATE, RBX),
            site(1, Role.DISPATCH, RBX),
            userdata=Userdata(mask=0xFFFE, reserved=(5,)),
        ),
        LoadOptions(ring_records=1000),
    )
    assert "-DAF_RING_RECORDS=1024" in made
    assert "-DAF_UD_MASK=0xfffeull" in made
    assert any("(u)==0x5ull" in flag for flag in made)
    assert "-DAF_HAVE_CREATE=1" in made
    assert "-DAF_HAVE_DISPATCH=1" in made
    assert "-DAF_OBJECT_OFFSET=8" in made
    assert "-DAF_SLOT_SIZE=40" in made


def test_without_a_dispatch_probe_the_object_is_not_read() -> None:
    made = defines(plan(site(0, Role.DESTROY, RBX)), LoadOptions())
    assert "-DAF_OBJECT_OFFSET=-1" in made
    assert "-DAF_HAVE_DISPATCH=0" in made
    assert "-DAF_HAVE_CREATE=0" in made


def test_userdata_that_is_an_fd_is_refused() -> None:
    with pytest.raises(Unsupported, match="fd"):
        defines(
            dataclasses.replace(plan(site(0, Role.DESTROY, RBX)), userdata=Userdata(kind="fd")), LoadOptions()
        )


def test_plain_definitions_cover_every_name_the_sources_use() -> None:
    names = {flag.removeprefix("-D").split("=")[0].split("(")[0] for flag in plain_defines()}
    planned = {flag.removeprefix("-D").split("=")[0].split("(")[0] for flag in defines(plan(), LoadOptions())}
    assert names == planned


def test_rings_keep_within_their_budget_however_many_cpus() -> None:
    for cpus in (1, 2, 7, 64, 512):
        fitted = LoadOptions().fitted(cpus)
        assert fitted.ring_records & (fitted.ring_records - 1) == 0
        assert fitted.lifetime_records & (fitted.lifetime_records - 1) == 0
        assert fitted.ring_records * 64 * cpus <= RECORDER_BYTES
        assert fitted.lifetime_records * ctypes.sizeof(abi.Lifetime) * cpus <= max(
            LIFETIME_BYTES, MIN_RECORDS * ctypes.sizeof(abi.Lifetime) * cpus
        )
    assert LoadOptions().fitted(2) == LoadOptions()
    assert LoadOptions(ring_records=1000).fitted(2).ring_records == 1024

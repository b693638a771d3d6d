# The only module that imports bcc, and only inside the short-lived loader child: compile (or take what was
# compiled before), verify, attach, hand out file descriptors. Must not outlive its job: its LLVM stays out of
# the daemon.
from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import struct
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from probes import bpfload, btf, linked, perf
from probes.compiled import Compiled, MapShape, ProgramCache, cache_key, unbound
from probes.errors import BccMissing, LoaderFailed, TargetGoneWhileAttaching, WrongBcc
from probes.readers import HANDED
from probes.sysbpf import Map

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "bpf"
KERNEL_HEADERS = HERE / "kheaders"

TRACEPOINTS: tuple[tuple[str, str, bool], ...] = (
    # tracepoint (or its older name after a bar), program, required
    ("syscalls:sys_enter_epoll_ctl", "af_enter_ctl", True),
    ("syscalls:sys_exit_epoll_ctl", "af_exit_ctl", True),
    ("syscalls:sys_enter_epoll_wait", "af_enter_wait", False),
    ("syscalls:sys_exit_epoll_wait", "af_exit_wait", False),
    ("syscalls:sys_enter_epoll_pwait", "af_enter_wait", True),
    ("syscalls:sys_exit_epoll_pwait", "af_exit_wait", True),
    ("syscalls:sys_enter_epoll_pwait2", "af_enter_wait", False),
    ("syscalls:sys_exit_epoll_pwait2", "af_exit_wait", False),
    ("syscalls:sys_exit_epoll_create", "af_exit_create", False),
    ("syscalls:sys_exit_epoll_create1", "af_exit_create", True),
    ("syscalls:sys_enter_close", "af_enter_close", True),
    ("syscalls:sys_exit_close", "af_exit_close", True),
    ("syscalls:sys_exit_close_range", "af_exit_close_range", False),
    ("syscalls:sys_exit_dup", "af_exit_dup", True),
    ("syscalls:sys_enter_dup2", "af_enter_dup2", False),
    ("syscalls:sys_exit_dup2", "af_exit_dup2", False),
    ("syscalls:sys_enter_dup3", "af_enter_dup2", True),
    ("syscalls:sys_exit_dup3", "af_exit_dup2", True),
    ("syscalls:sys_exit_fcntl", "af_exit_fcntl", True),
    ("io_uring:io_uring_submit_req|io_uring:io_uring_submit_sqe", "af_io_uring", False),
    ("task:task_newtask", "af_newtask", True),
    ("sched:sched_process_exec", "af_execed", True),
    ("sched:sched_process_exit", "af_exited", True),
    ("signal:signal_generate", "af_signaled", False),
    ("exceptions:page_fault_user", "af_fault", False),
)

UNASKED = ("af_fault",)
"""Programs that are attached only where the kernel cannot be asked (AF_ASK of 10-maps.c)."""

MAPS = (
    "recorder",
    "lifetimes",
    "lifetime_heads",
    "urgent",
    "spans",
    "stacks",
    "stack_bytes",
    "counters",
    "targets",
    "slots",
    "regs",
    "numbers",
    "control",
    "names",
    "objects",
    "inner",
    "sites",
    "exec_paths",
    "hits",
    "prog",  # the kernel empties a program array when its last descriptor is closed
)

LENT = (
    "af_settle_now",
    "af_progress",
    "af_progress_read",
    "af_progress_recv",
    "af_progress_recvmsg",
    "af_progress_accept",
    "af_progress_two",
    "af_progress_pair",
)
"""Programs whose descriptors the daemon holds as well, to run or to attach them at need."""

WATCHED = tuple(sorted({program for _, program, _ in TRACEPOINTS}))
"""Programs whose descriptors the daemon holds to ask how often the kernel left them out, where there are."""

CHAIN = ("af_wait_more", "af_report", "af_settle_more", "af_progress_on")
"""Programs of the tail-call chain, by index (AF_PROG_* in 45-wait.c)."""

HANDLERS = tuple(f"af_on_{role.value}" for role in HANDED)
"""Programs that the readers of a role hand on to, by index in `hits`, where a plan has several of these."""

_KPROBE, _TRACEPOINT, _RAW_TRACEPOINT = 2, 5, 17  # BPF_PROG_TYPE_* (linux/bpf.h)
_LOG = 1 << 20
_LOG_LINES = 12
_SLOW = (
    "af_report",
    "af_signaled",
    "af_exit_wait",
    "af_wait_more",
    "af_enter_wait",
    "af_settle_more",
)  # to verify
_RUN = ("af_settle_now",)  # by BPF_PROG_TEST_RUN, which takes raw tracepoints (kernel/bpf/syscall.c)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRequest:
    """What the loader child is asked for. programs: (file offset, reader name); pids empty: every process."""

    image: str
    readers: str
    programs: tuple[tuple[int, str], ...]
    defines: tuple[str, ...]
    pids: tuple[int, ...]
    empty: bool = False  # attach empty programs instead: the baseline of the benchmark
    fresh: bool = False  # compile, whatever was compiled before
    ask: bool = True  # see LoadOptions


@dataclass(slots=True)
class Loaded:
    maps: dict[str, int]
    links: list[int]
    missing: list[str] = field(default_factory=list)  # optional tracepoints that could not be attached


def import_bcc() -> Any:
    """The real bcc module. Raises BccMissing or WrongBcc."""
    try:
        import bcc
    except Exception as error:
        raise BccMissing(sys.executable, f"{type(error).__name__}: {error}") from error
    if not hasattr(bcc, "BPF") or not hasattr(getattr(bcc, "BPF", None), "TRACEPOINT"):
        raise WrongBcc(str(getattr(bcc, "__file__", "bcc")))
    return bcc


def source_text(readers: str) -> str:
    """The whole program: the files of probes/bpf in the order of their names, then the generated readers.

    One text because bcc rewrites map operations in the main file only.
    """
    parts = [path.read_text(encoding="utf-8") for path in sorted(SOURCES.glob("[0-9]*.c"))]
    return "\n".join([*parts, readers])


def empty_text(readers: str) -> str:
    """The same program names with empty bodies, for measuring what the attach points alone cost."""
    names = {program for _, program, _ in TRACEPOINTS} | set(
        re.findall(r"^int (\w+)\(", readers, re.MULTILINE)
    )
    return "\n".join(f"int {name}(void *ctx) {{ return 0; }}" for name in sorted(names))


def load(request: LoadRequest, cache: ProgramCache | None = None) -> Loaded:
    """Compile, verify and attach. The caller passes the fds on; when the last holder dies, all goes."""
    given = flags(request)
    made, fds = compiled(request, given, cache or ProgramCache())
    uprobes = {program for _, program in request.programs} | set(HANDLERS)
    programs = _verified(made, fds, uprobes)
    loaded = Loaded(maps={}, links=[])
    if not request.empty:
        loaded.maps = {name: fds[name] for name in MAPS}
        loaded.maps.update((name, programs[name]) for name in (*LENT, *WATCHED) if name in programs)
        chain = Map(fds["prog"], 4, 4)
        for index, name in enumerate(CHAIN):
            chain.put(struct.pack("<i", index), struct.pack("<i", programs[name]))
        for index, name in enumerate(HANDLERS):
            if name in programs:
                Map(fds["hits"], 4, 4).put(struct.pack("<i", index), struct.pack("<i", programs[name]))
    _attach_tracepoints(programs, loaded, asked="-DAF_ASK=1" in given)
    _attach_uprobes(programs, request, loaded)
    return loaded


def flags(request: LoadRequest) -> tuple[str, ...]:
    """What the compiler is told of this kernel and of the request. Raises LoaderFailed."""
    version = [int(part) for part in re.findall(r"\d+", platform.release())[:3]] + [0, 0, 0]
    return (
        f"-I{SOURCES}",
        f"-DAF_LINUX_VERSION_CODE={(version[0] << 16) + (version[1] << 8) + min(version[2], 255)}",
        "-Wno-unused-function",
        *btf.definitions(ask=request.ask),
        *request.defines,
    )


def compiled(
    request: LoadRequest, given: tuple[str, ...], cache: ProgramCache
) -> tuple[Compiled, dict[str, int]]:
    """(what the compiler makes, or made before, descriptors of its maps). Raises BccMissing, WrongBcc,
    LoaderFailed."""
    text = empty_text(request.readers) if request.empty else source_text(request.readers)
    key = cache_key(text, given, f"bcc {_version()}", (SOURCES, KERNEL_HEADERS))
    known = None if request.fresh else cache.load(key)
    if known is not None:
        return known, {name: _created(name, shape) for name, shape in known.maps.items()}
    os.environ["BCC_KERNEL_SOURCE"] = str(KERNEL_HEADERS)
    made, fds = _compile(import_bcc(), text, given)
    cache.store(key, made)
    return made, fds


def _version() -> str:
    """Of the bcc there is: what its package says, without loading it. Raises BccMissing, WrongBcc."""
    spec = find_spec("bcc")
    try:
        return (Path(str(spec and spec.origin)).parent / "version.py").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return str(import_bcc().__version__)


def _compile(bcc: Any, text: str, flags: Sequence[str]) -> tuple[Compiled, dict[str, int]]:
    """(what the compiler made, descriptors of the maps that bcc created with it). Raises LoaderFailed."""
    from bcc import lib

    table_count = _native("bpf_num_tables", ctypes.c_size_t, ctypes.c_void_p)
    table_name = _native("bpf_table_name", ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t)
    try:
        module = bcc.BPF(text=text, cflags=list(flags))
        fds = {}
        for number in range(table_count(module.module)):
            name = table_name(module.module, number)
            fds[name.decode()] = int(lib.bpf_table_fd(module.module, name))
        names = {fd: name for name, fd in fds.items()}
        found = [lib.bpf_function_name(module.module, i) for i in range(lib.bpf_num_functions(module.module))]
        compiled = Compiled(
            maps={name: _shape(fd) for name, fd in fds.items()},
            programs={name.decode(): unbound(module.dump_func(name), names) for name in found},
        )
    except Exception as error:
        raise LoaderFailed(
            "the BPF program does not compile",
            detail=str(error),
            causes=("bcc is older than 0.25", "the loader's stderr above names the line"),
            remedy="afterfree doctor",
        ) from error
    _keep.append(module)  # its end closes the maps
    return compiled, fds


_keep: list[Any] = []


def _native(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    """A function of libbcc that the module bcc does not declare."""
    from bcc import lib

    function: Callable[..., Any] = ctypes.CFUNCTYPE(result, *arguments, use_errno=True)((name, lib))
    return function


def _shape(fd: int) -> MapShape:
    """Of a map that is there (fdinfo: proc_pid_fdinfo(5), kernel/bpf/syscall.c)."""
    said = Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii")
    known = dict(line.split(":", 1) for line in said.splitlines() if ":" in line)
    kind, key, value, entries, flags = (
        int(known[name].strip(), 0)
        for name in ("map_type", "key_size", "value_size", "max_entries", "map_flags")
    )
    return MapShape(kind=kind, key=key, value=value, entries=entries, flags=flags)


def _created(name: str, shape: MapShape) -> int:
    try:
        return bpfload.create_map(name, shape)
    except OSError as error:
        raise LoaderFailed(
            f"the kernel refused the BPF map {name}",
            detail=str(error.strerror),
            causes=("too little memory, or a limit on locked memory (ulimit -l) on kernels before 5.11",),
            remedy="afterfree doctor",
        ) from error


def _verified(compiled: Compiled, fds: dict[str, int], uprobes: set[str]) -> dict[str, int]:
    """Program name -> descriptor, without optional ones that the verifier refuses. Several at a time:
    the verifier takes most of the time to arm. Raises LoaderFailed."""
    needed = {program for _, program, required in TRACEPOINTS if required}
    optional = {program for _, program, _ in TRACEPOINTS} - needed

    functions = {
        name: compiled.programs[name].bound(fds) for name in linked.FUNCTIONS if name in compiled.programs
    }
    argument = compiled.maps["scratch"].value if functions else 0

    def load(name: str) -> int:
        kind = _KPROBE if name in uprobes else _RAW_TRACEPOINT if name in _RUN else _TRACEPOINT
        whole = linked.link(name, compiled.programs[name].bound(fds), functions)
        types = linked.types(whole, argument) if len(whole.starts) > 1 else None
        try:
            return _program(name, kind, whole.code, types)
        except LoaderFailed:
            if name not in optional:
                raise
            return -1

    found: dict[str, int] = {}
    failures: list[BaseException] = []
    named = compiled.programs.keys() - functions.keys()
    waiting = iter(sorted(named, key=lambda name: name not in _SLOW))  # the slowest first
    taking = threading.Lock()

    def work() -> None:
        while not failures:
            with taking:
                name = next(waiting, None)
            if name is None:
                return
            try:
                found[name] = load(name)
            except BaseException as error:  # noqa: BLE001 - raised below
                failures.append(error)

    # No executor: concurrent.futures takes as long to import as ten programs to verify.
    threads = [threading.Thread(target=work) for _ in range(min(4, os.cpu_count() or 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return {name: found[name] for name in named if found[name] >= 0}


def _program(name: str, kind: int, code: bytes, types: tuple[bytes, bytes] | None = None) -> int:
    with contextlib.suppress(OSError):
        return bpfload.load_program(name, kind, code, types)
    log = ctypes.create_string_buffer(_LOG)
    try:
        return bpfload.load_program(name, kind, code, types, log)
    except OSError as error:
        said = log.value.decode("utf-8", "replace").splitlines()[-_LOG_LINES:]
        raise LoaderFailed(
            f"the kernel refused the BPF program {name}",
            detail="\n".join([str(error.strerror), *said]),
            causes=(
                "the kernel is older than 5.15",
                "this process lacks CAP_BPF and CAP_PERFMON",
                "kernel lockdown is 'confidentiality'",
            ),
            remedy="afterfree doctor",
        ) from error


def _attach_tracepoints(programs: dict[str, int], loaded: Loaded, *, asked: bool) -> None:
    for tracepoint, program, required in TRACEPOINTS:
        if asked and program in UNASKED:
            continue
        numbers = (perf.tracepoint_id(*name.split(":")) for name in tracepoint.split("|"))
        there = next((number for number in numbers if number is not None), None)
        if there is None:
            if required:
                raise LoaderFailed(
                    f"the kernel has no tracepoint {tracepoint}",
                    causes=("CONFIG_FTRACE_SYSCALLS is off",),
                    remedy="afterfree doctor",
                )
            loaded.missing.append(tracepoint)
            continue
        if program not in programs:
            loaded.missing.append(f"{tracepoint} (its verifier refuses {program})")
            continue
        try:
            loaded.links.append(perf.attach(programs[program], there))
        except OSError as error:
            raise LoaderFailed(
                f"cannot attach to tracepoint {tracepoint}",
                detail=str(error.strerror),
                causes=("kernel.perf_event_paranoid forbids it", "too many open files (ulimit -n)"),
                remedy="afterfree doctor",
            ) from error


def _attach_uprobes(programs: dict[str, int], request: LoadRequest, loaded: Loaded) -> None:
    pids: Sequence[int] = request.pids or (-1,)
    for offset, program in request.programs:
        for pid in pids:
            try:
                loaded.links.append(perf.attach_uprobe(programs[program], request.image, offset, pid))
            except OSError as error:
                if pid != -1 and not os.path.exists(f"/proc/{pid}/exe"):
                    raise TargetGoneWhileAttaching(pid, "exited") from error
                raise LoaderFailed(
                    f"cannot put a uprobe at file offset {offset:#x} of {os.path.realpath(request.image)}",
                    detail=f"perf_event_open refused it: {error.strerror}",
                    causes=(
                        "the executable lies on a file system without an inode mapping (some overlays)",
                        "an earlier version left a probe on this file (dmesg: ref_ctr_offset): copy it",
                        "too many open files (ulimit -n)",
                    ),
                    remedy="afterfree symbols EXE shows the sites; afterfree doctor the prerequisites",
                ) from error

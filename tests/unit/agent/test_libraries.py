"""What is a standard library's or a wrapper's code, and what is the program's own."""

from __future__ import annotations

import pytest

from agent.libraries import c_library, library_file, library_function, own_code

THEIRS = (
    "/opt/zig/lib/std/posix.zig",
    "std/os/linux/x86_64.zig",
    "../sysdeps/unix/sysv/linux/close.c",
    "./io/close.c",
    "/build/musl-1.2.4/src/unistd/close.c",
    "src/unistd/close.c",
    "/usr/include/c++/12/bits/shared_ptr_base.h",
    "/usr/include/boost/asio/detail/impl/epoll_reactor.ipp",
    "/srv/deps/asio/include/asio/detail/impl/socket_ops.ipp",
    "/rustc/90b35a6/library/std/src/os/fd/owned.rs",
    "/root/.rustup/toolchains/stable/lib/rustlib/src/rust/library/core/src/ptr/mod.rs",
    "/root/.cargo/registry/src/index.crates.io-6f17d22bba15001f/mio-0.8.11/src/sys/unix/selector/epoll.rs",
    "/root/.cargo/registry/src/github.com-1ecc6299db9ec823/libc-0.2.153/src/unix/mod.rs",
    "/usr/local/go/src/syscall/zsyscall_linux_amd64.go",
    "/usr/local/go/src/internal/poll/fd_unix.go",
    "/usr/local/go/src/runtime/internal/syscall/asm_linux_amd64.s",
    "internal/runtime/syscall/syscall_linux.go",
    "net/fd_posix.go",
    "/go/pkg/mod/golang.org/x/sys@v0.18.0/unix/zsyscall_linux.go",
)
OWN = (
    "/src/worker.zig",
    "src/server.c",
    "/srv/net/loop.c",
    "net/http.zig",
    "/home/dev/runtime/server.c",
    "/go/src/github.com/acme/server/conn.go",
    "/home/dev/server/src/network/pool.cc",
    "src/main.rs",
    "/root/.cargo/registry/src/index.crates.io-6f17d22bba15001f/hyper-0.14.28/src/server/conn.rs",
    "/srv/myasio/loop.cpp",
    "",
)


@pytest.mark.parametrize("file", THEIRS)
def test_theirs(file: str) -> None:
    assert library_file(file)


@pytest.mark.parametrize("file", OWN)
def test_own(file: str) -> None:
    assert not library_file(file)


def test_wrappers_by_name() -> None:
    theirs = ("close", "__close", "__libc_close", "__close_nocancel", "epoll_ctl", "epoll_wait@@GLIBC_2.3.2")
    assert all(map(library_function, theirs))
    assert not any(map(library_function, ("conn_close", "Conn::close", "worker.Conn.close", "main.close")))


def test_c_libraries() -> None:
    theirs = ("libc.so.6", "libc-2.31.so", "ld-linux-x86-64.so.2", "ld-musl-x86_64.so.1", "libpthread.so.0")
    assert all(map(c_library, theirs))
    assert not any(map(c_library, ("libcurl.so.4", "libcrypto.so.3", "server", "libcpool.so")))


def test_a_wrapper_that_the_program_brings_along_is_not_its_own_code() -> None:
    theirs = (
        ("posix.epoll_ctl", "/src/http.zig/src/posix.zig"),
        ("posix.close", "src/posix.zig"),
        ("sys::close", "/srv/sys.rs"),
    )
    own = (
        ("posix.Address.toIOAddress", "/src/http.zig/src/posix.zig"),
        ("worker.Conn.close", "/src/worker.zig"),
        ("close", "/srv/composix.c"),
        ("accept", "/srv/server.c"),
        ("closeAll", "/src/posix.zig"),
    )
    assert not any(own_code(function, file) for function, file in theirs)
    assert all(own_code(function, file) for function, file in own)

# Owns what tells the code of standard libraries, and of what wraps system calls, from a program's own.
# By names alone; pure.
from __future__ import annotations

import functools
import re

_FILES = (
    r"(?:^|/)std/"  # Zig's lib/std, Rust's library/std
    r"|/sysdeps/|^(?:\./|\.\./)?(?:io|socket|nptl|misc|csu|stdlib|posix)/[^/]*\.[ch]$"  # glibc's own
    r"|/musl[^/]*/src/|^src/(?:unistd|linux|network|thread|internal)/[^/]*\.[cs]$"
    r"|/c\+\+/\d|/libstdc\+\+-v3/|/libcxx/"
    r"|(?:^|/)asio/(?:detail|impl|execution)/|(?:^|/)boost/(?:asio|system|smart_ptr)/"
    r"|^/rustc/|/library/(?:std|core|alloc)/|/\.rustup/toolchains/"
    r"|/(?:libc|mio|nix|rustix|socket2|polling|linux-raw-sys|epoll)-\d[^/]*/src/"
    # Go's, below GOROOT/src or, built with -trimpath, from there
    r"|(?:^|/src/)(?:internal/(?:poll|runtime|syscall)|runtime|syscall|net|os)/(?:[^/]+/)*[^/]*\.(?:go|s)$"
    r"|golang\.org/x/sys@?[^/]*/"
)
_WRAPPERS = frozenset(
    {
        "close",
        "close_range",
        "dup",
        "dup2",
        "dup3",
        "fcntl",
        "fcntl64",
        "accept",
        "accept4",
        "syscall",
        "epoll_create",
        "epoll_create1",
        "epoll_ctl",
        "epoll_wait",
        "epoll_pwait",
        "epoll_pwait2",
        "shutdown",
    }
)
# A program's own copy of such wrappers lies in a file so named: http.zig's `posix.epoll_ctl` of posix.zig.
_WRAPPING = r"(?:^|/)(?:posix|os|sys|syscalls?|linux|libc|unistd|unix)\.[a-z+]+$"
_C_LIBRARY = re.compile(r"(?:libc|libpthread|ld)(?:[-.].*)?\.so(?:\..*)?|ld-.*|libc\.musl.*")


def library_file(file: str) -> bool:
    """Source of a standard library (C, C++, Zig, Go, Rust), or of what wraps system calls and polling beside
    it (mio, boost::asio's details): how something was called, not who called it."""
    return _files().search(file) is not None


@functools.cache
def _files() -> re.Pattern[str]:
    """Compiled where reports are drawn only: it takes the memory of a small module."""
    return re.compile(_FILES)


def own_code(function: str, file: str) -> bool:
    """Whether a frame with a source file is the program's own: neither a library's nor a wrapper that the
    program brings along, which says as little of who called (`posix.close` of its posix.zig)."""
    if not file or library_file(file):
        return False
    bare = function.rpartition(".")[2].rpartition(":")[2]
    return not (bare in _WRAPPERS and _wrapping().search(file))


@functools.cache
def _wrapping() -> re.Pattern[str]:
    return re.compile(_WRAPPING)


def library_function(name: str) -> bool:
    """A C library's wrapper of a system call: `close`, `__libc_close`, `__epoll_wait_nocancel`."""
    bare = name.split("@", 1)[0].lstrip("_").removeprefix("libc_").removesuffix("_nocancel")
    return bare in _WRAPPERS


def c_library(name: str) -> bool:
    """The C library, or its loader, by a file's name without folder."""
    return _C_LIBRARY.fullmatch(name) is not None

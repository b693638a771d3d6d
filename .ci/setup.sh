#!/usr/bin/env bash
# Prepares a checkout: distribution packages that cannot come from PyPI, then the virtual environment.
#   .ci/setup.sh python   what `make check` needs: no root, no bcc
#   .ci/setup.sh kernels  also what `make kernels` needs: qemu, virtme-ng
#   .ci/setup.sh bpf      also what attaching needs: bcc, gdb, wrk, strace, bpftool, C compilers
set -euo pipefail
cd "$(dirname "$0")/.."

mode=${1:-bpf}
venv=${VENV:-.venv}
# bcc exists for the distribution's interpreter only, so a python3 earlier in PATH would not do.
python=${PYTHON:-/usr/bin/python3}

missing=()
need_command() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || missing+=("$2"); }
need_module() { "$python" -c "import $1" >/dev/null 2>&1 || missing+=("$2"); }

if [ ! -x "$python" ]; then
    missing+=(python3)
fi
need_module ensurepip python3-venv
if [ "$mode" = kernels ]; then
    need_command qemu-system-x86_64 qemu-system-x86
    need_command depmod kmod
    need_command busybox busybox-static
fi
if [ "$mode" != python ]; then
    need_module bcc python3-bpfcc
    need_command bpftool bpftool
    need_command cc gcc
    # the compiler matrix
    need_command g++ g++
    need_command clang clang
    need_command clang++ clang
    need_command dwz dwz
    need_command objcopy binutils
    need_command rustc rustc
    need_command clang clang
    need_command gdb gdb
    need_command lldb lldb
    need_module drgn python3-drgn
    need_command strace strace
    need_command wrk wrk
    [ -e /usr/include/stdint.h ] || missing+=(libc6-dev)
    [ -e /usr/include/liburing.h ] || missing+=(liburing-dev)
fi

if [ "${#missing[@]}" -gt 0 ]; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
        {
            echo "setup: these packages are missing: ${missing[*]}"
            echo
            echo "  next"
            echo "    sudo apt-get install --no-install-recommends ${missing[*]}"
            echo "    (other distributions: the packages of the same purpose; bcc must be the one for $python)"
            [ "$mode" != python ] && echo "    make check needs none of them except python3-venv"
        } >&2
        exit 3
    fi
    echo "setup: installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq -o Acquire::Retries=3 update || echo "setup: apt-get update failed, trying with the lists there are" >&2
    apt-get -qq -y -o Acquire::Retries=3 install --no-install-recommends "${missing[@]}"
fi

if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -c 'import pip' >/dev/null 2>&1; then
    echo "setup: making $venv from $python"
    rm -rf "$venv"
    "$python" -m venv --system-site-packages "$venv"
fi
echo "setup: installing Python packages into $venv"
extras=dev
[ "$mode" = kernels ] && extras=dev,kernels
"$venv/bin/python" -m pip install -qq --disable-pip-version-check --retries 5 -e ".[$extras]"
"$venv/bin/python" -c 'import agent, probes, symbols, click, rich, elftools, capstone'

# Owns the errors of probes/: data for agent/cli.py, which alone turns them into text and exit codes.
from __future__ import annotations


class ProbeError(Exception):
    """Something between us and the kernel or the target failed.

    title: what failed, one line; detail: what the system said; causes: likely ones, most likely first;
    remedy: the next command to run or thing to change; exit_code_hint: "prerequisite" or "runtime".
    """

    exit_code_hint = "runtime"

    def __init__(
        self, title: str, *, detail: str = "", causes: tuple[str, ...] = (), remedy: str = ""
    ) -> None:
        super().__init__(title)
        self.title = title
        self.detail = detail
        self.causes = causes
        self.remedy = remedy


class PrerequisiteMissing(ProbeError):
    exit_code_hint = "prerequisite"


class NotRoot(PrerequisiteMissing):
    def __init__(self, uid: int) -> None:
        super().__init__(
            "not root",
            detail=f"effective user id is {uid}; attaching probes needs CAP_BPF and CAP_PERFMON",
            remedy="run the same command with sudo",
        )


class ForeignPidNamespace(PrerequisiteMissing):
    def __init__(self, here: int) -> None:
        super().__init__(
            "this is another pid namespace than the kernel's own",
            detail=f"/proc/self/ns/pid is pid:[{here}]: a container's, and the processes have other numbers here",
            remedy="run afterfree on the host, or with its process ids (docker --pid=host, hostPID)",
        )


class BccMissing(PrerequisiteMissing):
    def __init__(self, interpreter: str, detail: str) -> None:
        super().__init__(
            "bcc is not importable",
            detail=f"{interpreter}: {detail}",
            causes=(
                "the package python3-bpfcc is not installed",
                "the virtual environment lacks --system-site-packages or is not of /usr/bin/python3",
            ),
            remedy="apt-get install python3-bpfcc, then make setup (or: /usr/bin/python3 -m venv "
            "--system-site-packages .venv)",
        )


class WrongBcc(PrerequisiteMissing):
    def __init__(self, where: str) -> None:
        super().__init__(
            "the module named bcc is not the BPF compiler collection",
            detail=f"{where} has no class BPF that can compile; PyPI's package bcc is an unrelated library",
            remedy="pip uninstall bcc, then apt-get install python3-bpfcc",
        )


class TracefsUnavailable(PrerequisiteMissing):
    def __init__(self, detail: str) -> None:
        super().__init__(
            "tracefs cannot be mounted",
            detail=detail,
            causes=(
                "no CAP_SYS_ADMIN in this mount namespace",
                "the kernel was built without CONFIG_TRACING",
            ),
            remedy="on the host: mount -t tracefs tracefs /sys/kernel/tracing",
        )


class LoaderFailed(ProbeError):
    """Compiling, verifying or attaching failed in the loader child."""


class LoaderTooSlow(LoaderFailed):
    """Our own limit ended the loader child: nothing is known of what it would have said."""


class NoSuchProcess(ProbeError):
    def __init__(self, pid: int) -> None:
        super().__init__(
            f"no process with pid {pid}",
            detail=f"/proc/{pid} does not exist",
            causes=("it has exited", "the pid belongs to another pid namespace"),
            remedy="pgrep -a SERVER; or watch by executable, which also follows restarts: "
            "afterfree watch --exe PATH",
        )


class TargetGoneWhileAttaching(ProbeError):
    def __init__(self, pid: int, what: str) -> None:
        super().__init__(
            f"process {pid} {what} while it was being attached",
            detail="no probe was left behind",
            remedy="start it again, or follow restarts: afterfree watch --exe PATH",
        )


class TargetNotReadable(ProbeError):
    def __init__(self, pid: int, limits: str) -> None:
        super().__init__(
            f"what /proc says of process {pid} could not be read in time",
            detail=f"the helper process did not answer within our own limits ({limits})\n"
            "no probe was left behind",
            causes=("the machine is under heavy load", "another process holds the memory map of that one"),
            remedy="run the same command again",
        )


class HelperEnded(ProbeError):
    """how: the end of the /proc helper, and its last words."""

    def __init__(self, how: str) -> None:
        super().__init__(
            "the helper process that reads /proc ends instead of answering",
            detail=f"{how}\nno probe was left behind",
            causes=(
                "the installation is damaged, or was replaced while afterfree runs",
                "a limit on processes or memory",
            ),
            remedy="afterfree doctor",
        )


class WrongArchitecture(PrerequisiteMissing):
    def __init__(self, machine: str, host: str) -> None:
        super().__init__(
            f"the executable is for {machine}, this machine is {host}",
            detail="live probing needs an executable of the machine it runs on (tested: x86_64)",
            remedy="afterfree symbols EXE shows the plan on any machine; watch it on its own",
        )


class Unsupported(ProbeError):
    """The plan asks for something the kernel side cannot do."""

"""What `afterfree demo` says where its own server does not get as far as being watched."""

from __future__ import annotations

import io
import signal
import subprocess

from agent.commands import demo
from probes import preflight


def test_a_server_that_this_processor_cannot_run_is_named_with_the_way_out() -> None:
    process = subprocess.Popen(["/bin/sh", "-c", "ulimit -c 0; kill -ILL $$"])
    process.wait()
    error = demo._gone(process, io.BytesIO(b"fault at 0x10\n"))
    assert signal.Signals(-process.returncode) is signal.SIGILL
    assert "killed by SIGILL" in error.detail
    assert "fault at 0x10" in error.detail
    assert "instructions that this processor lacks" in error.causes[0]
    assert error.remedy == "make clean demo"


def test_what_is_about_to_be_attached_is_not_compiled_for_a_check_before() -> None:
    names = {check.name for check in preflight.checks(attaching=False)}
    assert "tracefs" in names
    assert not names & {"kernel side", "watching", "capture"}

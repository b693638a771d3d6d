"""How children are started: what they can import, what they inherit, and what is known of their end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from probes import children, errors, loader, preflight

SHOW = """
import json, os, sys
def main():
    import probes
    print(json.dumps({"path": sys.path, "probes": probes.__file__, "argv": sys.argv, "cwd": os.getcwd(),
        "env": [name for name in os.environ if name.startswith("PYTHON")],
        "site": "site" in sys.modules}))
    return 7
"""


def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **options: bool) -> tuple[dict[str, object], int]:
    """What a child started from a copy of probes/ says of itself."""
    (tmp_path / "ours" / "probes").mkdir(parents=True)
    start = tmp_path / "ours" / "probes" / "child_main.py"
    start.write_text(Path(children.ROOT / "probes" / "child_main.py").read_text())
    (tmp_path / "ours" / "probes" / "__init__.py").touch()
    (tmp_path / "ours" / "probes" / "show.py").write_text(SHOW)
    monkeypatch.setattr(children, "_START", str(start))
    theirs = tmp_path / "theirs"
    (theirs / "probes").mkdir(parents=True)
    (theirs / "probes" / "__init__.py").write_text("raise SystemExit('theirs')")
    monkeypatch.chdir(theirs)
    for name in ("PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "PYTHONSTARTUP"):
        monkeypatch.setenv(name, str(theirs))
    command = children.command("probes.show", "a", "b", packages=options.get("packages", True))
    child = children.Child(command, stdout=subprocess.PIPE, here=options.get("here", False))
    out, _ = child.communicate(timeout=60)
    assert out, child.last_words()
    return json.loads(out), child.returncode


@pytest.mark.parametrize("packages", [True, False])
def test_nothing_of_the_caller_reaches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packages: bool
) -> None:
    said, code = shown(tmp_path, monkeypatch, packages=packages)
    assert code == 7
    assert said["probes"] == str(tmp_path / "ours" / "probes" / "__init__.py")
    assert said["argv"] == ["probes.show", "a", "b"]
    assert said["env"] == []
    assert said["cwd"] == "/"
    assert said["site"] is packages
    path = said["path"]
    assert isinstance(path, list)
    assert path[0] == str(tmp_path / "ours")
    assert not {"", ".", str(tmp_path / "theirs"), str(tmp_path / "ours" / "probes")} & set(path)


def test_one_that_opens_what_the_user_named_stays_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, _ = shown(tmp_path, monkeypatch, here=True)
    assert said["cwd"] == str(tmp_path / "theirs")
    assert said["probes"] == str(tmp_path / "ours" / "probes" / "__init__.py")


def test_its_end_is_told_in_words() -> None:
    done = children.Child(
        [sys.executable, "-c", "import sys; print('one\\ntwo', file=sys.stderr); sys.exit(4)"]
    )
    done.wait(60)
    assert (done.ending(), done.last_words()) == ("ended with exit status 4", "one\ntwo")
    killed = children.Child([sys.executable, "-c", "import os; os.kill(os.getpid(), 15)"])
    killed.wait(60)
    assert killed.ending() == "was killed by signal 15 (SIGTERM)"
    assert children.signal_name(40) == "signal 40"


def test_only_its_last_words_are_kept() -> None:
    code = "import sys\nfor n in range(100000): print('line', n, file=sys.stderr)"
    child = children.Child([sys.executable, "-c", code])
    child.wait(60)
    lines = child.last_words().splitlines()
    assert (len(lines), lines[-1]) == (12, "line 99999")


def test_native_code_that_dies_names_its_place() -> None:
    command = children.command("probes.nothing")
    assert command[command.index("-X") + 1] == "faulthandler"


class TestLoader:
    """What is said of a loader child that gives no answer."""

    def failure(self, monkeypatch: pytest.MonkeyPatch, code: str) -> errors.LoaderFailed:
        monkeypatch.setattr(children, "command", lambda *_: [sys.executable, "-c", code])
        with pytest.raises(errors.LoaderFailed) as caught:
            loader.tried()
        return caught.value

    def test_our_own_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(loader, "TIMEOUT_S", 1.0)
        code = "import sys, time; print('compiling', file=sys.stderr, flush=True); time.sleep(60)"
        error = self.failure(monkeypatch, code)
        assert error.title == "the loader child was killed by our own limit of 1 s"
        assert "compiling" in error.detail
        assert "memory" not in str(error.causes)

    @pytest.mark.skipif(os.geteuid() != 0, reason="doctor tries it as root only")
    def test_our_own_limit_is_no_verdict_of_doctor(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(loader, "TIMEOUT_S", 0.5)
        code = "import time; time.sleep(60)"
        monkeypatch.setattr(children, "command", lambda *_: [sys.executable, "-c", code])
        check = preflight._bpf()
        assert (check.ok, check.required, check.tried) == (False, True, False)
        assert "our own limit" in check.detail
        assert code not in check.detail

    def test_our_own_limit_for_its_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(loader, "LEAVING_S", 1.0)
        code = "import os, time; os.closerange(3, 4096); time.sleep(60)"
        assert "our own limit of 1 s" in self.failure(monkeypatch, code).title

    def test_a_signal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        error = self.failure(monkeypatch, "import os; os.kill(os.getpid(), 9)")
        assert "was killed by signal 9 (SIGKILL)" in error.title
        assert "memory" in error.causes[0]
        error = self.failure(monkeypatch, "import os; os.kill(os.getpid(), 11)")
        assert "was killed by signal 11 (SIGSEGV)" in error.title
        assert "memory" not in str(error.causes)

    def test_an_end_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        error = self.failure(monkeypatch, "import no_such_module")
        assert "ended with exit status 1 before it had answered" in error.title
        assert "No module named 'no_such_module'" in error.detail
        assert "memory" not in str(error.causes)


def test_no_other_place_starts_python() -> None:
    """One place only: a new one would be a new door."""
    found = {
        str(path.relative_to(children.ROOT))
        for package in ("agent", "probes", "symbols")
        for path in (children.ROOT / package).rglob("*.py")
        if "sys.executable" in path.read_text()
    }
    assert found == {"probes/children.py", "probes/loader_bcc.py"}  # the latter names it in an error


def test_the_environment_stays_but_for_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "x")
    monkeypatch.setenv("DEBUGINFOD_URLS", "y")
    made = children.environment()
    assert "PYTHONPATH" not in made
    assert made["DEBUGINFOD_URLS"] == "y"
    assert made["PATH"] == os.environ["PATH"]

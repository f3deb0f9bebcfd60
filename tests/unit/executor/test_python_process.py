"""Another Python of this environment can be started from anywhere."""

import subprocess
import sys
from pathlib import Path

import pytest

from tetriserve_backend.executor.python_process import find_python, python_command


@pytest.mark.parametrize("claimed", ["", "/usr/bin/some-server-that-embeds-python"])
def test_interpreter_is_found_when_the_process_is_not_a_plain_python(
    monkeypatch: pytest.MonkeyPatch, claimed: str
) -> None:
    monkeypatch.setattr(sys, "executable", claimed)
    assert Path(find_python()).parent == Path(sys.prefix) / "bin"


def test_child_has_our_import_path_and_its_own_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "only_here.py").write_text("import sys; print(__name__, sys.argv[1:])")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    output = subprocess.run([*python_command("only_here"), "a", "b c"], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "__main__ ['a', 'b c']"

"""What a process of its own makes is there as a whole, or an error says in one line why not."""

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tetriserve_backend.domain import ConfigurationError
from tetriserve_backend.executor.config import ModelSettings
from tetriserve_backend.executor.demo_models import ensure_demo
from tetriserve_backend.executor.made_directory import have_made
from tetriserve_profiling.blank_model import without_weights

MODULE = """
import sys
from tetriserve_backend.domain import ConfigurationError
from tetriserve_backend.executor.made_directory import complete_or_not_at_all, make_as_told

def make(name, directory):
    print("a library warns", file=sys.stderr)
    with complete_or_not_at_all(directory) as unfinished:
        (unfinished / "name").write_text(name)
{body}

make_as_told(make)
"""


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Has a directory made by a process that does this as well; gives the directory."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(body: str) -> Path:
        (tmp_path / "maker.py").write_text(MODULE.format(body=textwrap.indent(body, 8 * " ")))
        directory = tmp_path / "models" / "made"
        have_made("maker", "a name", directory, "the model")
        return directory

    return make


def test_what_was_made_is_there_and_nothing_else(make: Callable[[str], Path]) -> None:
    directory = make("")
    assert (directory / "name").read_text() == "a name"
    assert list(directory.parent.iterdir()) == [directory]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("raise ConfigurationError('x: 1; allowed: 2')", "x: 1; allowed: 2"),
        (
            "raise OSError(28, 'No space left on device')",
            "No space left on device; fix: let TETRISERVE_HOME name a folder that can be written and has room",
        ),
        ("import os; os._exit(9)", "a library warns"),
    ],
)
def test_an_error_that_was_foreseen_is_one_line(
    make: Callable[[str], Path], tmp_path: Path, body: str, told: str
) -> None:
    with pytest.raises(ConfigurationError) as error:
        make(body)
    assert str(error.value) == f"the model could not be made in {tmp_path}/models/made: {told}"


def test_of_an_error_that_nobody_foresaw_all_is_told(make: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigurationError, match=r"(?s)a library warns\nTraceback .*KeyError: 'x'$"):
        make("{}['x']")


@pytest.mark.parametrize(
    ("have", "called"),
    [
        (lambda home: without_weights(ModelSettings(path="FLUX.1-dev")), "FLUX.1-dev without weights"),
        (lambda home: ensure_demo("demo-flux", home), "the embedded model"),
    ],
)
def test_a_home_where_nothing_can_be_made_is_told_in_one_line(
    have: Callable[[Path], object], called: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.write_text("a file")
    monkeypatch.setenv("TETRISERVE_HOME", str(home))
    with pytest.raises(ConfigurationError) as error:
        have(home)
    assert str(error.value).startswith(f"{called} could not be made in {home}/models/")
    assert str(error.value).endswith(
        ": Not a directory; fix: let TETRISERVE_HOME name a folder that can be written and has room"
    )

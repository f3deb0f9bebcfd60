"""The embedded models: real pipelines, small, with seeded random weights, made on first use."""

import argparse
import logging
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tetriserve_backend.domain import ConfigurationError
from tetriserve_backend.executor.demo_config import DemoConfig, DemoFluxConfig, DemoSd3Config
from tetriserve_backend.executor.python_process import child_environment, python_command

DEMO_MODELS: Mapping[str, DemoConfig] = {
    "demo-flux": DemoFluxConfig(),
    "demo-sd3": DemoSd3Config(),
    # For the live benchmark on two cores: a second rank is of no use to 128², and nearly halves a step of 768². With
    # the layers of `demo-flux` a run would take longer, and with its VAE decoding 768² three times as long as a step.
    "demo-flux-bench": DemoFluxConfig(num_single_layers=1, vae_channels=(4, 4, 8, 8)),
}
"""What may be named instead of a directory."""

_log = logging.getLogger(__name__)
_BUILD_TIMEOUT_S = 300.0


def demo_directory(name: str, home: Path) -> Path:
    """Where the embedded model `name` lies below `home`, made or not."""
    return home / "models" / f"{name}-{DEMO_MODELS[name].digest}"


def ensure_demo(name: str, home: Path) -> Path:
    """The directory of the embedded model `name` below `home`, made now if it is not there yet (a few seconds).

    Safe when several processes do it at once. The work is done by a process of its own, because it
    needs libraries that nothing else in the caller's process needs.

    Raises:
        ConfigurationError: it could not be made.
    """
    directory = demo_directory(name, home)
    if directory.is_dir():
        return directory
    _log.info("generating the embedded model in %s", directory)
    command = [*python_command("tetriserve_backend.executor.demo_models"), name, str(directory)]
    try:
        result = subprocess.run(
            command,
            env=child_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_BUILD_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigurationError(f"the embedded model could not be made in {directory}: {error}") from error
    if result.returncode != 0 or not directory.is_dir():
        reason = result.stderr.decode(errors="replace").strip()[-2000:]
        raise ConfigurationError(f"the embedded model could not be made in {directory}: {reason}")
    return directory


def build_directory(directory: Path, config: DemoConfig) -> None:
    """Write a pipeline of this configuration to `directory`, complete or not at all."""
    from tetriserve_backend.executor.demo_pipeline import make_pipeline  # noqa: PLC0415  (takes seconds)

    directory.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        make_pipeline(config).save_pretrained(unfinished)
        unfinished.chmod(0o755)
        unfinished.rename(directory)
    except OSError:
        # Somebody else was faster: a rename never replaces a directory with something in it.
        if not directory.is_dir():
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def main() -> None:
    """Make the embedded model that is named first at the path given second."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("name", choices=DEMO_MODELS)
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    build_directory(arguments.directory, DEMO_MODELS[arguments.name])


if __name__ == "__main__":
    main()

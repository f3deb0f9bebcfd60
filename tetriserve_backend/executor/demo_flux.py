"""The embedded default model: a real FLUX.1 pipeline, small, with seeded random weights, made on first use."""

import argparse
import hashlib
import json
import logging
import shutil
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from tetriserve_backend.domain import ConfigurationError
from tetriserve_backend.executor.python_process import child_environment, python_command

DEMO_NAME = "demo-flux"

_log = logging.getLogger(__name__)
_BUILD_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class DemoFluxConfig:
    """Sizes of a generated FLUX.1 directory; the defaults are those of `demo-flux`.

    Few wide layers, because thin ones would spend their time on communication and not scale, and
    8 heads, so that up to 8 ranks can share a step. `format_version` changes with the generator.
    """

    format_version: int = 1
    seed: int = 20
    num_layers: int = 1
    num_single_layers: int = 1
    num_heads: int = 8
    head_dim: int = 32
    rope_axes: tuple[int, int, int] = (8, 12, 12)
    text_width: int = 64
    text_layers: int = 2
    text_tokens: int = 64
    latent_channels: int = 16
    vae_channels: tuple[int, ...] = (8, 8, 16, 16)
    guidance_embeds: bool = True

    @property
    def digest(self) -> str:
        """Names the directory, so that another configuration gets another one."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


def demo_flux_directory(home: Path) -> Path:
    """Where `demo-flux` lies below `home`, made or not."""
    return home / "models" / f"{DEMO_NAME}-{DemoFluxConfig().digest}"


def ensure_demo_flux(home: Path) -> Path:
    """The directory of `demo-flux` below `home`, made now if it is not there yet (a few seconds).

    Safe when several processes do it at once. The work is done by a process of its own, because it
    needs libraries that nothing else in the caller's process needs.

    Raises:
        ConfigurationError: it could not be made.
    """
    directory = demo_flux_directory(home)
    if directory.is_dir():
        return directory
    _log.info("generating the embedded model in %s", directory)
    command = [*python_command("tetriserve_backend.executor.demo_flux"), str(directory)]
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


def build_flux_directory(directory: Path, config: DemoFluxConfig) -> None:
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
    """Make `demo-flux` at the path given as the only argument."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("directory", type=Path)
    build_flux_directory(parser.parse_args().directory, DemoFluxConfig())


if __name__ == "__main__":
    main()

"""The embedded models: real pipelines, small, with seeded random weights, made on first use."""

import logging
from collections.abc import Mapping
from pathlib import Path

from tetriserve_backend.executor.demo_config import DemoConfig, DemoFluxConfig, DemoSd3Config
from tetriserve_backend.executor.made_directory import complete_or_not_at_all, have_made, make_as_told

DEMO_MODELS: Mapping[str, DemoConfig] = {
    "demo-flux": DemoFluxConfig(),
    "demo-sd3": DemoSd3Config(),
    # For the live benchmark on two cores: a second rank is of no use to 128², and nearly halves a step of 768². With
    # the layers of `demo-flux` a run would take longer, and with its VAE decoding 768² three times as long as a step.
    "demo-flux-bench": DemoFluxConfig(num_single_layers=1, vae_channels=(4, 4, 8, 8)),
}
"""What may be named instead of a directory."""

_log = logging.getLogger(__name__)


def demo_directory(name: str, home: Path) -> Path:
    """Where the embedded model `name` lies below `home`, made or not."""
    return home / "models" / f"{name}-{DEMO_MODELS[name].digest}"


def ensure_demo(name: str, home: Path) -> Path:
    """The directory of the embedded model `name` below `home`, made now if it is not there yet (a few seconds).

    Safe when several processes do it at once.

    Raises:
        ConfigurationError: it could not be made.
    """
    directory = demo_directory(name, home)
    if directory.is_dir():
        return directory
    _log.info("generating the embedded model in %s", directory)
    have_made("tetriserve_backend.executor.demo_models", name, directory, "the embedded model")
    return directory


def build_directory(directory: Path, config: DemoConfig) -> None:
    """Write a pipeline of this configuration to `directory`, complete or not at all.

    Raises:
        OSError: it cannot be written.
    """
    with complete_or_not_at_all(directory) as unfinished:
        from tetriserve_backend.executor.demo_pipeline import make_pipeline  # noqa: PLC0415  (takes seconds)

        make_pipeline(config).save_pretrained(unfinished)


if __name__ == "__main__":
    make_as_told(lambda name, directory: build_directory(directory, DEMO_MODELS[name]))

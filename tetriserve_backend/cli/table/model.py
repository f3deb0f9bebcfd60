"""`tetriserve table model`: a latency table for hardware that is not there."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from tetriserve_backend.cli.options import parse_numbers, parse_resolutions
from tetriserve_backend.cli.output_file import refuse_unwritable
from tetriserve_backend.domain import ConfigurationError, TetriserveError
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_profiling.analytic.calibration import EAGER, load_calibration
from tetriserve_profiling.analytic.gpu import load_gpu
from tetriserve_profiling.analytic.model import Model, load_model
from tetriserve_profiling.analytic.pipeline import Pipeline
from tetriserve_profiling.analytic.table import TableShape, compute_table

_EXIT_WRONG_INPUT = 2
_ANALYTIC = "analytic"


def model(
    *,
    model: Annotated[
        str, typer.Option(help="FLUX.1-dev, SD3-medium, SD3.5-large, or a transformer's config.json of diffusers.")
    ],
    gpu: Annotated[str, typer.Option(help="H100, H200, A100, A40, L40S, B200, or a YAML file like those shipped.")],
    gpus: Annotated[int, typer.Option(min=1, help="How many.")],
    out: Annotated[
        Path,
        # Resolved: a/../b is b even where there is no a, so that what is there is seen before it is replaced.
        typer.Option("-o", "--out", resolve_path=True, help="Where to write the table (*.latency.json)."),
    ],
    software: Annotated[str, typer.Option(help="What runs the kernels: eager, compile or xdit-eager.")] = EAGER,
    resolutions: Annotated[
        str, typer.Option(help="HEIGHTxWIDTH, with commas between.")
    ] = "256x256,512x512,1024x1024,2048x2048",
    batches: Annotated[str, typer.Option(help="Images that share a step, with commas between.")] = "1,2,4",
    text_tokens: Annotated[int | None, typer.Option(min=1, help="Length of the text; default: the model's.")] = None,
    name: Annotated[str | None, typer.Option(help="What servers call the model; default: told by --model.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a table that is not analytic, too.")] = False,
) -> None:
    """Compute a latency table from a model's layers and a GPU's datasheet.

    Exit status: 0 done; 2 wrong options or files.
    """
    try:
        shape = TableShape(
            gpus, parse_resolutions("--resolutions", resolutions), parse_numbers("--batches", batches)
        )  # fmt: skip
        refuse_unwritable(out, f"--out {out}")
        _refuse_to_replace(out, force)
        pipeline = Pipeline(_described(model, text_tokens, name), load_gpu(gpu), load_calibration(), software)
        table = compute_table(pipeline, shape)
        table.save(out)
    except TetriserveError as error:
        print(f"tetriserve: {error}", file=sys.stderr)
        raise typer.Exit(_EXIT_WRONG_INPUT) from error
    except OSError as error:
        print(f"tetriserve: --out {out}: cannot be written: {error.strerror}", file=sys.stderr)
        raise typer.Exit(_EXIT_WRONG_INPUT) from error
    steps = len(table.to_dict()["step"])
    print(f"{out}: {steps} steps of {pipeline.model.name} on {gpus} × {pipeline.gpu.name}, {software}, {_ANALYTIC}")


def _described(model: str, text_tokens: int | None, name: str | None) -> Model:
    changes = {"text_tokens": text_tokens, "model": name}
    return load_model(model).model_copy(update={key: value for key, value in changes.items() if value is not None})


def _refuse_to_replace(out: Path, force: bool) -> None:
    """What was measured cannot be computed anew.

    Raises:
        ConfigurationError: `out` is a table that is not analytic, or no table at all.
    """
    if force or not out.exists():
        return
    try:
        source: str = LatencyTable.load(out).source
    except TetriserveError:
        source = "not a latency table"
    if source != _ANALYTIC:
        raise ConfigurationError(f"--out {out}: exists and is {source}; choose another name, or add --force")

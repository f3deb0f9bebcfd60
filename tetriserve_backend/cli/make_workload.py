"""`tetriserve workload`: writes traces."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from pydantic import ValidationError

from tetriserve_backend.domain import ConfigurationError
from tetriserve_backend.domain.validation import explained
from tetriserve_backend.simulator.trace import write_trace
from tetriserve_backend.simulator.workload import Arrivals, ImportFormat, WorkloadSpec, generate, import_requests

_EXIT_WRONG_INPUT = 2


def workload(
    *,
    out: Annotated[Path, typer.Option("-o", "--out", help="The trace to write (*.trace.jsonl).")],
    config: Annotated[Path | None, typer.Option(help="YAML or JSON file with any of these settings.")] = None,
    requests: Annotated[int | None, typer.Option(min=0, help="How many [300].")] = None,
    mix: Annotated[
        str | None, typer.Option(help="uniform, skewed, one HEIGHTxWIDTH, or a YAML or JSON file of weights [uniform].")
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="How far skewed leans to large images [1].")] = None,
    slo: Annotated[
        list[str] | None, typer.Option(metavar="HEIGHTxWIDTH=SECONDS", help="SLO at scale 1 [the paper's].")
    ] = None,
    slo_scale: Annotated[
        list[float] | None, typer.Option(help="Factor on SLOs [1]; given several times, each request draws one.")
    ] = None,
    steps: Annotated[str | None, typer.Option(help="A number, or a range such as 8:50 [20].")] = None,
    arrivals: Annotated[Arrivals | None, typer.Option(help="When requests come [poisson].")] = None,
    rate: Annotated[float | None, typer.Option(help="Mean requests per minute [12].")] = None,
    cv: Annotated[float | None, typer.Option(help="gamma: coefficient of variation of the gaps [2].")] = None,
    burst_on: Annotated[float | None, typer.Option(help="bursts: seconds of high rate [15].")] = None,
    burst_off: Annotated[float | None, typer.Option(help="bursts: seconds of low rate [45].")] = None,
    burst_factor: Annotated[float | None, typer.Option(help="bursts: high rate over mean rate [3].")] = None,
    period: Annotated[float | None, typer.Option(help="diurnal: seconds from peak to peak [1800].")] = None,
    amplitude: Annotated[float | None, typer.Option(help="diurnal: swing over mean rate [0.8].")] = None,
    prompts: Annotated[Path | None, typer.Option(help="Text file with prompts to draw from, one a line.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Same seed, same trace [0].")] = None,
    imported: Annotated[
        tuple[ImportFormat, Path] | None,
        typer.Option("--import", metavar="FORMAT FILE", help="Take over a trace of hetu-dit or vllm-omni."),
    ] = None,
) -> None:
    """Write a trace: made from these numbers, or taken over from another system.

    Beside X.trace.jsonl goes X.workload.json with the settings; simulate and report read their labels there.
    For a trace that is taken over, the settings fill in what it lacks.

    Exit status: 0 done; 2 wrong options or files.
    """
    try:
        given: dict[str, Any] = {
            "requests": requests,
            "mix": _read_mix(mix),
            "alpha": alpha,
            "slo_s": dict(_parse_slo(text) for text in slo) if slo else None,
            "slo_scales": tuple(slo_scale) if slo_scale else None,
            "arrivals": arrivals,
            "rate_per_minute": rate,
            "cv": cv,
            "burst_on_s": burst_on,
            "burst_off_s": burst_off,
            "burst_factor": burst_factor,
            "period_s": period,
            "amplitude": amplitude,
            "prompts": tuple(filter(None, prompts.read_text(encoding="utf-8").splitlines())) if prompts else None,
            "seed": seed,
            **_parse_steps(steps),
        }
        base = _read_mapping(config) if config else {}
        spec = _build({**base, **{name: value for name, value in given.items() if value is not None}})
        made = import_requests(imported[1], imported[0], spec) if imported else generate(spec)
        count = write_trace(out, made)
        labels = {"mix": imported[0].value} if imported else spec.labels()
        _write_sidecar(out, spec, labels)
    except (ConfigurationError, OSError) as error:
        print(f"tetriserve: {error}", file=sys.stderr)
        raise typer.Exit(_EXIT_WRONG_INPUT) from error
    print(f"{out}: {count} requests")


def _build(values: dict[str, Any]) -> WorkloadSpec:
    try:
        return WorkloadSpec.model_validate(values)
    except ValidationError as error:
        raise ConfigurationError(explained(error.errors(include_url=False)[0], "workload")) from error


def _read_mix(text: str | None) -> str | dict[str, Any] | None:
    if text is not None and Path(text).is_file():
        return _read_mapping(Path(text))
    return text


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path}: {error}") from error
    if not isinstance(values, dict):
        raise ConfigurationError(f"{path}: expected a mapping, got {type(values).__name__}")
    return values


def _parse_slo(text: str) -> tuple[str, float]:
    resolution, _, seconds = text.partition("=")
    try:
        return resolution, float(seconds)
    except ValueError:
        raise ConfigurationError(f"--slo {text}: allowed: HEIGHTxWIDTH=SECONDS, such as 1024x1024=3") from None


def _parse_steps(text: str | None) -> dict[str, int]:
    if text is None:
        return {}
    low, separator, high = text.partition(":")
    try:
        return {"min_steps": int(low), "max_steps": int(high if separator else low)}
    except ValueError:
        raise ConfigurationError(f"--steps {text}: allowed: a number, or a range such as 8:50") from None


def _write_sidecar(trace: Path, spec: WorkloadSpec, labels: dict[str, Any]) -> None:
    sidecar = trace.with_name(trace.name.removesuffix(".jsonl").removesuffix(".trace") + ".workload.json")
    document = {"labels": labels, "workload": spec.model_dump(mode="json", exclude={"prompts"})}
    sidecar.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

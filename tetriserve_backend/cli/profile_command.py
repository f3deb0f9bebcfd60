"""`tetriserve profile`: measure a latency table on this machine's own ranks."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from pydantic import ValidationError

from tetriserve_backend.cli.launcher.repository import find_model_repository
from tetriserve_backend.cli.options import choose_model, parse_numbers, parse_resolutions, read_settings
from tetriserve_backend.cli.output_file import refuse_unwritable
from tetriserve_backend.cli.profile_progress import ProfileProgress
from tetriserve_backend.cli.profile_target import refuse_loss, table_name
from tetriserve_backend.cli.stop_signals import stop_signals
from tetriserve_backend.cli.table.show import make_console, print_table
from tetriserve_backend.domain import ConfigurationError, TetriserveError
from tetriserve_backend.domain.validation import what_is_wrong
from tetriserve_backend.executor.config import ExecutorSettings, ModelSettings
from tetriserve_backend.executor.model_executor import ModelExecutor
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_backend.latency_table.document import parse_document
from tetriserve_backend.triton_adapter.settings import ServedModelSettings, parse_resolution
from tetriserve_profiling.blank_model import without_weights
from tetriserve_profiling.conditions import Conditions
from tetriserve_profiling.facts import identity_of, modes_of
from tetriserve_profiling.partial_file import PartialFile
from tetriserve_profiling.profiler import Profiler, Progress
from tetriserve_profiling.schedule import list_work
from tetriserve_profiling.settings import MAX_REPEATS, MAX_WARMUP, ProfileSettings, default_resolutions

_EXIT_FAILED: Final = 1
_EXIT_WRONG_INPUT: Final = 2
_EXIT_INTERRUPTED: Final = 130
_TABLES: Final = Path("denoise") / "latency_tables"
_NOT_ABOUT_TIME: Final = {"path", "local_files_only", "device", "dtype", "pace_table"}
"""Settings of a model that its times do not depend on, or that a table has keys of its own for."""


@dataclass(frozen=True, slots=True)
class _Job:
    """What was asked for. `out` and `resolutions` may be left to the machine."""

    served: ServedModelSettings
    executor: ExecutorSettings
    resolutions: tuple[tuple[int, int], ...] | None
    batches: tuple[int, ...]
    degrees: tuple[int, ...] | None
    repeats: int
    warmup: int
    out: Path | None
    resume: bool
    force: bool
    known_as: str | None
    """The name by which servers know a model that goes by another one here."""

    def settings(self, device: str) -> ProfileSettings:
        """What to measure on `device` (`cpu` or `cuda`).

        Raises:
            ConfigurationError: something of it is wrong, on whatever device.
        """
        configured = tuple(parse_resolution(text) for text in self.served.quick_resolutions or ())
        try:
            return ProfileSettings(
                resolutions=self.resolutions or configured or default_resolutions(device),
                batches=self.batches,
                degrees=self.degrees,
                repeats=self.repeats,
                warmup=self.warmup,
            )
        except ValidationError as error:
            raise ConfigurationError(
                "; ".join(what_is_wrong(item) for item in error.errors(include_url=False))
            ) from error


def profile(
    *,
    model: Annotated[
        str | None,
        typer.Option(help="An embedded model, a diffusers folder, or a hub id; with `models` in --config, one's name."),
    ] = None,
    resolutions: Annotated[
        str | None, typer.Option(help="HEIGHTxWIDTH, with commas between; default: by device.")
    ] = None,
    batches: Annotated[str, typer.Option(help="Images that share a step, with commas between.")] = "1,2,4",
    degrees: Annotated[
        str | None, typer.Option(help="Ranks that share a step, with commas between; default: all possible.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=2, max=MAX_REPEATS, help="Samples of each entry.")] = 20,
    warmup: Annotated[int, typer.Option(min=1, max=MAX_WARMUP, help="Unmeasured runs before the first sample.")] = 3,
    world_size: Annotated[int | None, typer.Option(help="Ranks; default 2 on CPU, all GPUs on CUDA.")] = None,
    out: Annotated[
        Path | None,
        # Resolved: a/../b is b even where there is no a, so that what is there is seen before it is replaced.
        typer.Option("-o", "--out", resolve_path=True, help="Table to write; default: into the model repository."),
    ] = None,
    config: Annotated[Path | None, typer.Option("-c", "--config", help="YAML file with settings.")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting, such as model.dtype=float16.")
    ] = None,
    random_weights: Annotated[
        bool,
        typer.Option(
            "--random-weights",
            help="Make the weights instead of reading them: the model may be a folder without any, or one that "
            "`table model` knows, such as FLUX.1-dev.",
        ),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume/--fresh", help="Take up a profile that was interrupted, or start anew.")
    ] = True,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a table of something else, or one that has more.")
    ] = False,
) -> None:
    """Measure seconds per step by resolution, batch and degree, encodes, decodes, dispatch and hand-over.

    What is measured is kept beside the table as it grows: after Ctrl-C or a crash, the same command goes on.

    Exit status: 0 done; 1 it could not be measured; 2 wrong options or files; 130 interrupted.
    """
    with ProfileProgress() as view:
        try:
            _refuse_unwritable(out)
            served, settings = _read_settings(config, assignments or [], model, world_size)
            known_as = None
            if random_weights or served.model.random_weights:
                blank, known_as = without_weights(served.model)
                served = served.model_copy(update={"model": blank})
            job = _Job(
                served,
                settings,
                parse_resolutions("--resolutions", resolutions) if resolutions else None,
                parse_numbers("--batches", batches),
                parse_numbers("--degrees", degrees) if degrees else None,
                repeats,
                warmup,
                out,
                resume,
                force,
                known_as,
            )
            # The ranks take long to load, and what is wrong here is so on any device.
            job.settings("cpu")
            table = asyncio.run(_profile(job, view))
        except (asyncio.CancelledError, KeyboardInterrupt):
            view.say("interrupted; the same command goes on from here")
            raise typer.Exit(_EXIT_INTERRUPTED) from None
        except (TetriserveError, OSError) as error:
            view.say(str(error))
            is_input = isinstance(error, ConfigurationError | OSError)
            raise typer.Exit(_EXIT_WRONG_INPUT if is_input else _EXIT_FAILED) from error
    print_table(parse_document(table.to_dict(), "measured"), make_console())


async def _profile(job: _Job, view: ProfileProgress) -> LatencyTable:
    task = asyncio.current_task()
    assert task is not None
    for number in stop_signals():
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    executor = ModelExecutor.alone(job.served.model, job.executor)
    view.say(f"starting the ranks with {job.known_as or job.served.model.path}")
    await executor.start()
    try:
        return await _measure(job, executor, view)
    finally:
        await executor.shutdown()


async def _measure(job: _Job, executor: ModelExecutor, view: ProfileProgress) -> LatencyTable:
    settings = job.settings(executor.device)
    conditions = Conditions.of(job.served.model, job.executor, executor.device, executor.dtype)
    identity = identity_of(executor, _what_times_depend_on(job.served.model, conditions, settings))
    if job.known_as is not None:
        identity = replace(identity, model=job.known_as)
    target = job.out or find_model_repository() / _TABLES / table_name(identity, conditions)
    work = list_work(settings, modes_of(executor))
    if not job.force:
        refuse_loss(target, identity, conditions, work)
    partial = PartialFile(target, identity)
    if not job.resume:
        partial.remove()
    record = partial.load()
    # Now rather than after the first measurements: the file may not be writable.
    partial.save(record)
    had = sum(record.counts().values()) + sum(record.move_counts().values())
    view.say(
        f"profiling {identity.model} on {identity.world_size} × {identity.device}, {len(work)} entries, into {target}"
        + (f"; {had} samples are there already" if had else "")
    )

    def note(progress: Progress) -> None:
        partial.save(record)
        view.show(progress)

    profiler = Profiler(executor, settings, record, note)
    await profiler.measure(work, with_moves=True)
    table = LatencyTable.from_dict(record.document(identity, work, record.move_costs()), str(target))
    try:
        table.save(target)
    except OSError as error:
        raise ConfigurationError(
            f"table {target}: cannot be written: {error.strerror}; fix: make room, and the same command goes on "
            f"from {partial.path}"
        ) from error
    partial.remove()
    view.say(f"wrote {target}; look at it with: tetriserve table check {target}")
    return table


def _refuse_unwritable(out: Path | None) -> None:
    """The ranks take long to load, and what they measure must not be for nothing.

    Raises:
        ConfigurationError: there is no model repository, or no table can be written there, or to `out`.
    """
    if out is not None:
        refuse_unwritable(out, f"--out {out}")
    else:
        tables = find_model_repository() / _TABLES
        refuse_unwritable(tables / "any.latency.json", f"model repository: {tables}")


def _read_settings(
    config: Path | None, assignments: Sequence[str], model: str | None, world_size: int | None
) -> tuple[ServedModelSettings, ExecutorSettings]:
    """The model and the ranks; `model` is the name of one of the configured `models`, or a model where there are none.

    Raises:
        ConfigurationError: a file, key or value is wrong, or it is not clear which model is meant.
    """
    options = {"executor.world_size": world_size}
    settings = read_settings(config, assignments, options)
    if settings.models:
        return choose_model(settings, model), settings.executor
    settings = read_settings(config, assignments, {**options, "model.path": model})
    return choose_model(settings, None), settings.executor


def _what_times_depend_on(model: ModelSettings, conditions: Conditions, settings: ProfileSettings) -> dict[str, Any]:
    return {
        **model.model_dump(mode="json", exclude=_NOT_ABOUT_TIME),
        **conditions.to_dict(),
        "profile": settings.model_dump(mode="json"),
    }

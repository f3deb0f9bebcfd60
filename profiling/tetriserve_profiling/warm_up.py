"""Has the ranks compile, before they serve, whatever a latency table may have them do."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from tetriserve_backend.domain import ConfigurationError, Request, SegmentKind
from tetriserve_backend.engine.commands import HandOver, RunSegment, Source, SourceKind
from tetriserve_backend.executor.placements import shared_groups
from tetriserve_backend.latency_table import Work
from tetriserve_profiling.bench import Bench, ProfiledExecutor, SegmentsFailedError
from tetriserve_profiling.stopwatch import CREATE, RESIDENT

_UNGUIDED = 1.0


async def warm_up(
    executor: ProfiledExecutor, works: Iterable[Work], on_progress: Callable[[str], None], model: str = ""
) -> None:
    """Run one step of each shape on each group of its size, with and without guidance where that differs.

    Args:
        executor: started, and idle until this returns.
        works: what a latency table has entries for.
        on_progress: told of each shape, in words.
        model: the served model, as `Request.model`.

    Raises:
        ConfigurationError: a shape failed.
    """
    facts = executor.facts
    scales = [facts.default_guidance_scale] + ([_UNGUIDED] if facts.supports_negative_prompt else [])
    bench = Bench(executor, model)
    for work in works:
        if work.kind is SegmentKind.DENOISE:
            for scale in scales:
                await _run(bench, work, scale)
            on_progress(f"warmed {work.height}x{work.width}, batch {work.batch}, on {work.degree} ranks")


async def _run(bench: Bench, work: Work, guidance_scale: float) -> None:
    requests: list[Request] = []
    commands: list[RunSegment] = []
    world_size = bench.executor.world_size
    groups = [*((rank,) for rank in range(world_size)), *shared_groups(world_size)]
    for ranks in (group for group in groups if len(group) == work.degree):
        batch = [bench.request(f"warm-{ranks[0]}-{n}", work.height, work.width, 1) for n in range(work.batch)]
        batch = [replace(request, guidance_scale=guidance_scale) for request in batch]
        encode = HandOver(CREATE, CREATE)
        commands += [bench.command(SegmentKind.ENCODE, [request], ranks[:1], encode) for request in batch]
        shared = HandOver(Source(SourceKind.BROADCAST, ranks[0]) if len(ranks) > 1 else RESIDENT, CREATE)
        commands.append(bench.command(SegmentKind.DENOISE, batch, ranks, shared, num_steps=1, cfg=work.cfg_degree))
        requests += batch
    try:
        await bench.run(commands)
    except SegmentsFailedError as error:
        raise ConfigurationError(
            f"model.compile: {work.height}x{work.width}, batch {work.batch}, on {work.degree} ranks failed: {error}; "
            "if it is for want of time, raise executor.segment_timeout_s and executor.group_timeout_s"
        ) from error
    finally:
        for request in requests:
            bench.executor.release(request.request_id)

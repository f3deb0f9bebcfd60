"""One rank's share of segments: take over the tensors, do the work, hand the results to the host."""

import logging
import re
import time
from collections.abc import Iterator, Mapping

import torch

from tetriserve_backend.domain import LatencyTableError, Request, Segment, SegmentKind
from tetriserve_backend.engine.commands import RunSegment
from tetriserve_backend.executor.device_memory import PeakMemory
from tetriserve_backend.executor.device_time import Stopwatch
from tetriserve_backend.executor.groups import HalvedGroup, RankGroups
from tetriserve_backend.executor.held_pace import HeldPace
from tetriserve_backend.executor.host_store import LATENT, PIXELS
from tetriserve_backend.executor.models.base import DiffusionModel, StepInput
from tetriserve_backend.executor.placements import pass_groups, used_groups
from tetriserve_backend.executor.refusal import why_refused
from tetriserve_backend.executor.step_reports import DoneStep, OnStep, StepReports
from tetriserve_backend.executor.tensor_keeper import MisplacedTensorsError, TensorKeeper, check_spec, parts_of
from tetriserve_backend.executor.tensors import HostCopier, Product
from tetriserve_backend.executor.wire import Blame, HostTensor, PartDone, PartFailed
from tetriserve_backend.latency_table import LatencyTable, work_of

_log = logging.getLogger(__name__)
_COMMUNICATION_ERROR = re.compile(r"gloo|nccl|processgroup|connection (reset|closed|refused)|timed out", re.IGNORECASE)

PartOutcome = tuple[PartDone | PartFailed, tuple[HostTensor, ...]]


class SegmentRunner:
    """Performs segments on one rank.

    Args:
        models: the loaded models, by the names that segments use; may change between segments.
        groups: the groups of this rank.
        on_step: called after each step of a request that asked for progress, on the lead rank only.
        paces: the latency tables that models keep to (`HeldPace`), for those that do.
    """

    def __init__(
        self,
        models: Mapping[str, DiffusionModel],
        groups: RankGroups,
        on_step: OnStep,
        paces: Mapping[str, LatencyTable],
    ) -> None:
        self._models, self._groups, self._on_step, self._paces = models, groups, on_step, paces
        self._rank, self._device = groups.rank, groups.device
        self._tensors = TensorKeeper(groups)
        self._copier = HostCopier(groups.device)

    def forget(self, request_id: str) -> None:
        """Drop what is held of a request."""
        self._tensors.forget(request_id)

    @torch.inference_mode()
    def run(self, command: RunSegment, incoming: tuple[HostTensor, ...]) -> PartOutcome:
        """Do this rank's share of a segment; never raises an `Exception`.

        After a failure the latents of the segment's requests are no longer held here, and a shared
        group is left, which wakes the members who still wait in it.
        """
        segment = command.segment
        refusal = self._refusal(segment)
        if refusal is not None:
            # Every member comes to the same verdict from the same command, so the group stays sound.
            return self._failure(segment, refusal, "work", group_broken=False), ()
        model = self._models[segment.model]
        try:
            split = self._enter_groups(segment, model)
            memory = PeakMemory(self._device)
            self._tensors.take_over(command, incoming, model)
            # Waiting for the group to come together is not work.
            watch = Stopwatch(self._device)
            watch.start()
            made = list(self._work(command, model, split, self._pace_of(segment)))
            watch.stop()
            results = self._copier.copy(made) if self._rank == segment.placement.lead else ()
            start_s, end_s = watch.span_s()
        except Exception as error:
            return self._fail(command, error), ()
        headers = tuple(result.header for result in results)
        return PartDone(segment.segment_id, start_s, end_s, headers, memory.in_bytes()), results

    def _refusal(self, segment: Segment) -> str | None:
        model = self._models.get(segment.model)
        if model is None:
            return f"there is no model '{segment.model}'; loaded: {', '.join(map(repr, sorted(self._models)))}"
        return why_refused(segment, model.facts, self._groups.world_size) or self._why_without_pace(segment)

    def _why_without_pace(self, segment: Segment) -> str | None:
        """What keeps a segment from being held to the pace of its model, if there is one."""
        try:
            if segment.model in self._paces:
                self._paces[segment.model].seconds(work_of(segment))
        except LatencyTableError as error:
            return str(error)
        return None

    def _enter_groups(self, segment: Segment, model: DiffusionModel) -> HalvedGroup | None:
        """Make xfuser work on this rank's share of the placement; the two halves if guidance is split."""
        for ranks in used_groups(segment):
            if self._rank in ranks and not self._groups.has(ranks):
                raise ConnectionError(f"the group of ranks {ranks} is broken")
        own = next(ranks for ranks in pass_groups(segment) if self._rank in ranks)
        self._groups.use(own, model)
        return self._groups.halved(segment.placement.ranks, own) if segment.cfg_degree > 1 else None

    def _pace_of(self, segment: Segment) -> HeldPace | None:
        table = self._paces.get(segment.model)
        if table is None:
            return None
        return HeldPace(table, segment, self._groups.latest(time.monotonic(), segment.placement.ranks))

    def _work(
        self, command: RunSegment, model: DiffusionModel, split: HalvedGroup | None, pace: HeldPace | None
    ) -> Iterator[Product]:
        """Do it; what it made, for the host."""
        segment = command.segment
        if segment.kind is SegmentKind.ENCODE:
            yield from self._encode(command, model)
            _hold(pace, 1)
            return
        if segment.kind is SegmentKind.DENOISE:
            self._denoise(command, model, split, pace)
        for part in segment.parts:
            held = self._tensors.of(part.request_id)
            if held.latent is None:
                raise MisplacedTensorsError(f"rank {self._rank} lacks the latent of '{part.request_id}'")
            elif segment.kind is SegmentKind.DENOISE:
                yield Product(part.request_id, LATENT, held.latent, held.step)
            else:
                yield Product(part.request_id, PIXELS, model.decode(held.latent, segment.height, segment.width))
                _hold(pace, 1)

    def _encode(self, command: RunSegment, model: DiffusionModel) -> Iterator[Product]:
        """Run the text encoders once for all requests of the segment, which share a prompt."""
        request = command.requests[0]
        conditioning = model.encode(request)
        specs = model.conditioning_specs(request)
        for spec in specs:
            check_spec(conditioning[spec.name], spec)
        for part in command.segment.parts:
            self._tensors.of(part.request_id).conditioning = conditioning
            for spec in specs:
                yield Product(part.request_id, spec.name, conditioning[spec.name])

    def _denoise(
        self, command: RunSegment, model: DiffusionModel, split: HalvedGroup | None, pace: HeldPace | None
    ) -> None:
        leads = self._rank == command.segment.placement.lead
        reports = StepReports(model, self._copier, self._device, self._on_step)
        for offset in range(command.segment.num_steps):
            # Parts of a batch may have different numbers of steps; those that are done drop out.
            inputs = [
                self._step_input(request, part.first_step + offset)
                for part, request, _ in parts_of(command)
                if offset < part.num_steps
            ]
            latents = model.step(inputs, split)
            for item, latent in zip(inputs, latents, strict=True):
                held = self._tensors.of(item.request.request_id)
                held.latent, held.step = latent, item.step_index + 1
            _hold(pace, offset + 1)
            if leads:
                reports.launched(
                    [
                        DoneStep(item.request, item.step_index, item.latent, latent)
                        for item, latent in zip(inputs, latents, strict=True)
                        if item.request.stream_progress
                    ]
                )
        reports.flush()

    def _step_input(self, request: Request, step_index: int) -> StepInput:
        held = self._tensors.of(request.request_id)
        if held.conditioning is None or held.latent is None:
            raise MisplacedTensorsError(f"rank {self._rank} lacks tensors of '{request.request_id}'")
        return StepInput(request, step_index, held.conditioning, held.latent)

    def _fail(self, command: RunSegment, error: Exception) -> PartFailed:
        segment = command.segment
        shared = segment.placement.sp_degree > 1
        if self._device.type == "cpu":
            for ranks in used_groups(segment):
                if self._rank in ranks:
                    self._groups.break_up(ranks)
        for part in segment.parts:
            self._tensors.of(part.request_id).latent = None
        if self._device.type == "cuda":
            if not shared:
                # An error that has broken the device shows again here, and ends this rank.
                torch.cuda.synchronize(self._device)
            torch.cuda.empty_cache()
        blame: Blame = "work"
        if isinstance(error, MisplacedTensorsError):
            blame = "state"
        elif shared and _is_communication_error(error):
            blame = "group"
        else:
            _log.error("rank %d: segment %d raised", self._rank, segment.segment_id, exc_info=error)
        return self._failure(segment, f"{type(error).__name__}: {error}", blame, group_broken=shared)

    def _failure(self, segment: Segment, reason: str, blame: Blame, group_broken: bool) -> PartFailed:
        return PartFailed(segment.segment_id, reason, blame, group_broken)


def _hold(pace: HeldPace | None, times: int) -> None:
    if pace is not None:
        pace.wait_for(times)


def _is_communication_error(error: Exception) -> bool:
    return isinstance(error, ConnectionError | TimeoutError) or bool(_COMMUNICATION_ERROR.search(str(error)))

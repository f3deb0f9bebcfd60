"""One rank's share of segments: take over the tensors, do the work, hand the results to the host."""

import logging
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from tetriserve_backend.domain import PIXELS_PER_TOKEN_SIDE, Request, Segment, SegmentKind, SegmentPart, image_tokens
from tetriserve_backend.engine.commands import HandOver, RunSegment, Source, SourceKind
from tetriserve_backend.executor.groups import RankGroups
from tetriserve_backend.executor.host_store import LATENT, PIXELS
from tetriserve_backend.executor.models.base import Conditioning, DiffusionModel, StepInput, TensorSpec
from tetriserve_backend.executor.placements import shared_groups
from tetriserve_backend.executor.tensors import from_host, to_host
from tetriserve_backend.executor.wire import Blame, HostTensor, PartDone, PartFailed

_log = logging.getLogger(__name__)
_COMMUNICATION_ERROR = re.compile(r"gloo|nccl|processgroup|connection (reset|closed|refused)|timed out", re.IGNORECASE)


@dataclass(slots=True)
class HeldTensors:
    """What this rank holds of one request; `step` denoising steps are behind `latent`."""

    conditioning: Conditioning | None = None
    latent: torch.Tensor | None = None
    step: int = 0


@dataclass(frozen=True, slots=True)
class _Transfer:
    """How tensors come to the ranks of a segment; `frames` are the host copies that came with the command."""

    ranks: tuple[int, ...]
    source: Source
    frames: dict[str, HostTensor]


class MisplacedTensorsError(Exception):
    """This rank does not hold what the command says it holds."""


PartOutcome = tuple[PartDone | PartFailed, tuple[HostTensor, ...]]


class SegmentRunner:
    """Owns the tensors of one rank.

    Args:
        model: the loaded model.
        groups: the groups of this rank.
        on_step: called with request id and step index after each step of a request that asked for
            progress, on the lead rank only.
    """

    def __init__(self, model: DiffusionModel, groups: RankGroups, on_step: Callable[[str, int], None]) -> None:
        self._model, self._groups, self._on_step = model, groups, on_step
        self._rank, self._device = groups.rank, groups.device
        self._held: dict[str, HeldTensors] = {}

    def forget(self, request_id: str) -> None:
        """Drop what is held of a request."""
        self._held.pop(request_id, None)

    @torch.inference_mode()
    def run(self, command: RunSegment, incoming: tuple[HostTensor, ...]) -> PartOutcome:
        """Do this rank's share of a segment; never raises an `Exception`.

        After a failure the latents of the segment's requests are no longer held here, and a shared
        group is left, which wakes the members who still wait in it.
        """
        segment = command.segment
        ranks = segment.placement.ranks
        refusal = self._refusal(segment)
        if refusal is not None:
            # Every member comes to the same verdict from the same command, so the group stays sound.
            return self._failure(segment, refusal, "work", group_broken=False), ()
        try:
            if not self._groups.has(ranks):
                raise ConnectionError(f"the group of ranks {ranks} is broken")
            self._groups.use(ranks)
            self._take_over(command, incoming)
            self._synchronize()
            start_s = time.monotonic()
            self._work(command)
            results = tuple(self._results(command)) if self._rank == segment.placement.lead else ()
            self._synchronize()
            end_s = time.monotonic()
        except Exception as error:
            return self._fail(command, error), ()
        return PartDone(segment.segment_id, start_s, end_s, tuple(r.header for r in results)), results

    def _refusal(self, segment: Segment) -> str | None:
        """Why this segment cannot be right on its ranks, if so (xfuser would be silently wrong)."""
        degree, ranks = segment.placement.sp_degree, segment.placement.ranks
        if degree > 1 and ranks not in shared_groups(self._groups.world_size):
            return f"there is no group of ranks {ranks} in a world of {self._groups.world_size}"
        if segment.height % PIXELS_PER_TOKEN_SIDE or segment.width % PIXELS_PER_TOKEN_SIDE:
            return f"{segment.height} x {segment.width} pixels are not multiples of {PIXELS_PER_TOKEN_SIDE}"
        if segment.kind is not SegmentKind.DENOISE:
            return None
        counts = {
            "attention heads": self._model.num_heads,
            "text tokens": self._model.text_tokens,
            "image tokens": image_tokens(segment.height, segment.width),
        }
        wrong = [f"{count} {name}" for name, count in counts.items() if count % degree]
        return f"degree {degree} does not divide {' and '.join(wrong)}" if wrong else None

    def _take_over(self, command: RunSegment, incoming: tuple[HostTensor, ...]) -> None:
        segment = command.segment
        ranks = segment.placement.ranks
        for part, request, hand_over in _parts(command):
            held = self._held.setdefault(part.request_id, HeldTensors())
            frames = {t.header.name: t for t in incoming if t.header.request_id == part.request_id}
            if segment.kind is SegmentKind.DENOISE:
                self._take_conditioning(_Transfer(ranks, hand_over.conditioning, frames), held)
            if segment.kind is not SegmentKind.ENCODE:
                step = part.first_step if segment.kind is SegmentKind.DENOISE else request.num_steps
                self._take_latent(_Transfer(ranks, hand_over.latent, frames), held, request, step)

    def _take_conditioning(self, transfer: _Transfer, held: HeldTensors) -> None:
        kind = transfer.source.kind
        if kind is SourceKind.CREATE:
            raise MisplacedTensorsError("a denoise cannot create its conditioning")
        own = held.conditioning or {}
        if kind is SourceKind.RESIDENT:
            if not own:
                raise MisplacedTensorsError(f"rank {self._rank} does not hold the conditioning")
            return
        specs = self._model.conditioning_specs()
        held.conditioning = {spec.name: self._share(transfer, spec, own.get(spec.name)) for spec in specs}

    def _take_latent(self, transfer: _Transfer, held: HeldTensors, request: Request, step: int) -> None:
        """Have the latent with `step` steps behind it."""
        kind = transfer.source.kind
        if kind is SourceKind.CREATE:
            if step != 0:
                raise MisplacedTensorsError(f"a latent with {step} steps behind it cannot be created")
            held.latent = self._model.initial_latent(request)
        if kind is SourceKind.RESIDENT or (kind is SourceKind.BROADCAST and transfer.source.root == self._rank):
            self._check_latent(held, step)
        if kind in (SourceKind.BROADCAST, SourceKind.HOST):
            spec = self._model.latent_spec(request.height, request.width)
            held.latent = self._share(transfer, spec, held.latent)
        held.step = step

    def _check_latent(self, held: HeldTensors, step: int) -> None:
        if held.latent is None or held.step != step:
            have = "no latent" if held.latent is None else f"a latent with {held.step} steps behind it"
            raise MisplacedTensorsError(f"rank {self._rank} holds {have}, wanted {step} steps")

    def _share(self, transfer: _Transfer, spec: TensorSpec, own: torch.Tensor | None) -> torch.Tensor:
        """The tensor that the root has, on every rank of the segment."""
        root = transfer.source.root
        if root not in transfer.ranks:
            raise MisplacedTensorsError(f"root {root} is not among ranks {transfer.ranks}")
        if root != self._rank:
            tensor = torch.empty(spec.shape, dtype=spec.dtype, device=self._device)
        elif transfer.source.kind is SourceKind.HOST:
            if spec.name not in transfer.frames:
                raise MisplacedTensorsError(f"no host copy of '{spec.name}' came along")
            tensor = from_host(transfer.frames[spec.name], self._device)
        elif own is None:
            raise MisplacedTensorsError(f"rank {self._rank} does not hold '{spec.name}'")
        else:
            tensor = own.contiguous()
        # A size that differs between members would abort processes inside the collective.
        _check_spec(tensor, spec)
        if len(transfer.ranks) > 1:
            self._groups.broadcast(tensor, transfer.ranks, root)
        return tensor

    def _work(self, command: RunSegment) -> None:
        if command.segment.kind is SegmentKind.ENCODE:
            for part, request, _ in _parts(command):
                self._held[part.request_id].conditioning = self._encode(request)
        elif command.segment.kind is SegmentKind.DENOISE:
            self._denoise(command)

    def _encode(self, request: Request) -> Conditioning:
        conditioning = self._model.encode(request)
        for spec in self._model.conditioning_specs():
            _check_spec(conditioning[spec.name], spec)
        return conditioning

    def _denoise(self, command: RunSegment) -> None:
        leads = self._rank == command.segment.placement.lead
        for offset in range(command.segment.num_steps):
            # Parts of a batch may have different numbers of steps; those that are done drop out.
            active = [(p, r) for p, r, _ in _parts(command) if offset < p.num_steps]
            inputs = [self._step_input(part, request, offset) for part, request in active]
            latents = self._model.step(inputs)
            for (part, request), latent in zip(active, latents, strict=True):
                held = self._held[part.request_id]
                held.latent, held.step = latent, part.first_step + offset + 1
                if leads and request.stream_progress:
                    self._synchronize()
                    self._on_step(part.request_id, part.first_step + offset)

    def _step_input(self, part: SegmentPart, request: Request, offset: int) -> StepInput:
        held = self._held[part.request_id]
        if held.conditioning is None or held.latent is None:
            raise MisplacedTensorsError(f"rank {self._rank} lacks tensors of '{part.request_id}'")
        return StepInput(request, part.first_step + offset, held.conditioning, held.latent)

    def _results(self, command: RunSegment) -> Iterator[HostTensor]:
        """Host copies of what the segment made."""
        segment = command.segment
        for part, _, _ in _parts(command):
            held = self._held[part.request_id]
            if segment.kind is SegmentKind.ENCODE and held.conditioning is not None:
                for name, tensor in held.conditioning.items():
                    yield to_host(tensor, part.request_id, name)
            elif held.latent is not None and segment.kind is SegmentKind.DENOISE:
                yield to_host(held.latent, part.request_id, LATENT, held.step)
            elif held.latent is not None:
                pixels = self._model.decode(held.latent, segment.height, segment.width)
                yield to_host(pixels, part.request_id, PIXELS)

    def _fail(self, command: RunSegment, error: Exception) -> PartFailed:
        segment = command.segment
        shared = segment.placement.sp_degree > 1
        if shared and self._device.type == "cpu":
            self._groups.break_up(segment.placement.ranks)
        for part in segment.parts:
            self._held.setdefault(part.request_id, HeldTensors()).latent = None
        if self._device.type == "cuda":
            if not shared:
                # An error that has broken the device shows again here, and ends this rank.
                self._synchronize()
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

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _parts(command: RunSegment) -> Iterator[tuple[SegmentPart, Request, HandOver]]:
    return zip(command.segment.parts, command.requests, command.hand_over, strict=True)


def _check_spec(tensor: torch.Tensor, spec: TensorSpec) -> None:
    if tuple(tensor.shape) != spec.shape or tensor.dtype != spec.dtype:
        raise ValueError(f"'{spec.name}' is {tuple(tensor.shape)} {tensor.dtype}, expected {spec.shape} {spec.dtype}")


def _is_communication_error(error: Exception) -> bool:
    return isinstance(error, ConnectionError) or bool(_COMMUNICATION_ERROR.search(str(error)))

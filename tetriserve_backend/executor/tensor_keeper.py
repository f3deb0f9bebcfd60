"""How the tensors of a segment's requests come to be on each of its ranks."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from tetriserve_backend.domain import Request, SegmentKind, SegmentPart
from tetriserve_backend.engine.commands import HandOver, RunSegment, Source, SourceKind
from tetriserve_backend.executor.groups import RankGroups
from tetriserve_backend.executor.models.base import Conditioning, DiffusionModel, TensorSpec
from tetriserve_backend.executor.tensors import from_host
from tetriserve_backend.executor.wire import HostTensor


@dataclass(slots=True)
class HeldTensors:
    """What this rank holds of one request; `step` denoising steps are behind `latent`."""

    conditioning: Conditioning | None = None
    latent: torch.Tensor | None = None
    step: int = 0


class MisplacedTensorsError(Exception):
    """This rank does not hold what the command says it holds."""


@dataclass(frozen=True, slots=True)
class _Transfer:
    """How tensors come to the ranks of a segment; `frames` are the host copies that came with the command."""

    ranks: tuple[int, ...]
    source: Source
    frames: dict[str, HostTensor]


class TensorKeeper:
    """Owns the tensors of one rank, by request.

    Args:
        groups: the groups of this rank.
    """

    def __init__(self, groups: RankGroups) -> None:
        self._groups = groups
        self._rank, self._device = groups.rank, groups.device
        self._held: dict[str, HeldTensors] = {}

    def of(self, request_id: str) -> HeldTensors:
        """What is held of a request; the caller may change it."""
        return self._held.setdefault(request_id, HeldTensors())

    def forget(self, request_id: str) -> None:
        """Drop what is held of a request."""
        self._held.pop(request_id, None)

    def take_over(self, command: RunSegment, incoming: tuple[HostTensor, ...], model: DiffusionModel) -> None:
        """Have what the segment starts from, as its hand-over says.

        Raises:
            MisplacedTensorsError: this rank does not hold what it should.
        """
        segment = command.segment
        ranks = segment.placement.ranks
        for part, request, hand_over in parts_of(command):
            held = self.of(part.request_id)
            frames = {t.header.name: t for t in incoming if t.header.request_id == part.request_id}
            if segment.kind is SegmentKind.DENOISE:
                transfer = _Transfer(ranks, hand_over.conditioning, frames)
                self._take_conditioning(transfer, held, model.conditioning_specs(request))
            if segment.kind is not SegmentKind.ENCODE:
                step = part.first_step if segment.kind is SegmentKind.DENOISE else request.num_steps
                self._take_latent(_Transfer(ranks, hand_over.latent, frames), held, request, step, model)

    def _take_conditioning(self, transfer: _Transfer, held: HeldTensors, specs: tuple[TensorSpec, ...]) -> None:
        kind = transfer.source.kind
        if kind is SourceKind.CREATE:
            raise MisplacedTensorsError("a denoise cannot create its conditioning")
        own = held.conditioning or {}
        if kind is SourceKind.RESIDENT:
            if not own:
                raise MisplacedTensorsError(f"rank {self._rank} does not hold the conditioning")
            return
        held.conditioning = {spec.name: self._share(transfer, spec, own.get(spec.name)) for spec in specs}

    def _take_latent(
        self, transfer: _Transfer, held: HeldTensors, request: Request, step: int, model: DiffusionModel
    ) -> None:
        """Have the latent with `step` steps behind it."""
        kind = transfer.source.kind
        if kind is SourceKind.CREATE:
            if step != 0:
                raise MisplacedTensorsError(f"a latent with {step} steps behind it cannot be created")
            held.latent = model.initial_latent(request)
        if kind is SourceKind.RESIDENT or (kind is SourceKind.BROADCAST and transfer.source.root == self._rank):
            self._check_latent(held, step)
        if kind in (SourceKind.BROADCAST, SourceKind.HOST):
            held.latent = self._share(transfer, model.latent_spec(request.height, request.width), held.latent)
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
        check_spec(tensor, spec)
        if len(transfer.ranks) > 1:
            self._groups.broadcast(tensor, transfer.ranks, root)
        return tensor


def parts_of(command: RunSegment) -> Iterator[tuple[SegmentPart, Request, HandOver]]:
    """Each request's part of a segment."""
    return zip(command.segment.parts, command.requests, command.hand_over, strict=True)


def check_spec(tensor: torch.Tensor, spec: TensorSpec) -> None:
    """Check that a tensor is what every rank expects.

    Raises:
        ValueError: it is not.
    """
    if tuple(tensor.shape) != spec.shape or tensor.dtype != spec.dtype:
        raise ValueError(f"'{spec.name}' is {tuple(tensor.shape)} {tensor.dtype}, expected {spec.shape} {spec.dtype}")

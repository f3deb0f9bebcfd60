"""Seconds of denoising steps by shape, ranks, batch and split of the guidance."""

from collections.abc import Iterable

from tetriserve_backend.domain import image_tokens
from tetriserve_backend.latency_table.curve import TokenCurve
from tetriserve_backend.latency_table.document import StepEntry
from tetriserve_backend.latency_table.work import Work


class StepTimes:
    """As profiled, and for other shapes on the line of latent tokens between profiled neighbours.

    Sides are positive multiples of 16 pixels. Nothing is cached here.

    Args:
        entries: of a table, some of them of single images.
    """

    def __init__(self, entries: Iterable[StepEntry]) -> None:
        points: dict[tuple[int, int, int], list[tuple[int, float]]] = {}
        self._profiled: dict[tuple[int, int, int, int, int], float] = {}
        for entry in entries:
            point = image_tokens(entry.height, entry.width), entry.seconds
            points.setdefault((entry.ranks, entry.batch, entry.cfg), []).append(point)
            self._profiled[entry.height, entry.width, entry.ranks, entry.batch, entry.cfg] = entry.seconds
        self._curves: dict[tuple[int, int], dict[int, TokenCurve]] = {}
        for (ranks, batch, cfg), values in sorted(points.items()):
            self._curves.setdefault((ranks, batch), {})[cfg] = TokenCurve(values)
        single = [curve for (_, batch), curves in self._curves.items() if batch == 1 for curve in curves.values()]
        self.min_tokens = min(curve.min_tokens for curve in single)
        self.max_tokens = max(curve.max_tokens for curve in single)

    def is_profiled(self, work: Work) -> bool:
        """Whether this step has an entry of its own."""
        return (work.height, work.width, work.degree, work.batch, work.cfg_degree) in self._profiled

    def seconds(self, height: int, width: int, ranks: int, batch: int, cfg: int) -> float | None:
        """Of a step with its guidance split into `cfg` parts; None where nothing around it was profiled."""
        seconds = self._profiled.get((height, width, ranks, batch, cfg))
        if seconds is None:
            curve = self._curves.get((ranks, batch), {}).get(cfg)
            tokens = image_tokens(height, width)
            seconds = curve.seconds_at(tokens) if curve is not None and curve.covers(tokens) else None
        return seconds

    def best(self, height: int, width: int, ranks: int, batch: int) -> tuple[float, int] | None:
        """Seconds and split of the guidance, the fastest of those whose parts divide the tokens; None as `seconds`."""
        tokens = image_tokens(height, width)
        modes = []
        for cfg in self._curves.get((ranks, batch), {}):
            seconds = self.seconds(height, width, ranks, batch, cfg)
            if seconds is not None:
                modes.append((tokens % (ranks // cfg) > 0, seconds, cfg))
        return min(modes)[1:] if modes else None

    def degrees(self, height: int, width: int) -> tuple[int, ...]:
        """Ranks that may share a step of one image, ascending: profiled around it, and dividing its latent tokens."""
        tokens = image_tokens(height, width)
        return tuple(
            ranks
            for (ranks, batch), curves in self._curves.items()
            if batch == 1
            and any(tokens % (ranks // cfg) == 0 and curve.covers(tokens) for cfg, curve in curves.items())
        )

    def batches(self, height: int, width: int, ranks: int) -> tuple[int, ...]:
        """Batch sizes that were profiled around this shape, ascending."""
        return tuple(batch for number, batch in self.around(height, width) if number == ranks)

    def around(self, height: int, width: int) -> list[tuple[int, int]]:
        """Ranks and batch sizes that were profiled around this shape, ascending."""
        tokens = image_tokens(height, width)
        return [key for key, curves in self._curves.items() if any(c.covers(tokens) for c in curves.values())]

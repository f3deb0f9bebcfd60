"""The step times of a latency table as grids: resolutions by degrees, one grid for each batch size."""

from collections.abc import Iterator
from dataclasses import dataclass

from tetriserve_backend.domain import image_tokens
from tetriserve_backend.latency_table.document import StepEntry, TableDocument
from tetriserve_backend.latency_table.work import mode_label


@dataclass(frozen=True, slots=True)
class Grid:
    """Steps of one batch size.

    Attributes:
        shapes: (height, width) in pixels, fewest tokens first.
        modes: (sp, cfg) of each column, fewest ranks first.
        entries: by shape and mode; some may be missing.
    """

    batch: int
    shapes: tuple[tuple[int, int], ...]
    modes: tuple[tuple[int, int], ...]
    entries: dict[tuple[tuple[int, int], tuple[int, int]], StepEntry]

    @property
    def title(self) -> str:
        """For people."""
        return f"steps of {self.batch} image" + ("s" if self.batch > 1 else "")

    @property
    def columns(self) -> tuple[str, ...]:
        """Headings."""
        return tuple(mode_label(sp, cfg) for sp, cfg in self.modes)

    @property
    def ranks(self) -> tuple[int, ...]:
        """Of each column."""
        return tuple(sp * cfg for sp, cfg in self.modes)

    def rows(self) -> Iterator[tuple[tuple[int, int], range]]:
        """Each shape and its columns."""
        for shape in self.shapes:
            yield shape, range(len(self.modes))

    def at(self, shape: tuple[int, int], column: int) -> StepEntry | None:
        """The entry there, if there is one."""
        return self.entries.get((shape, self.modes[column]))

    def speed_up(self, shape: tuple[int, int], column: int) -> float | None:
        """Over one rank; None on one rank, and where either entry is missing."""
        entry, single = self.at(shape, column), self.entries.get((shape, (1, 1)))
        return None if entry is None or single is None or entry is single else single.seconds / entry.seconds


def grids_of(document: TableDocument) -> list[Grid]:
    """One grid for each batch size, ascending."""
    grids = []
    for batch in sorted({entry.batch for entry in document.step}):
        own = [entry for entry in document.step if entry.batch == batch]
        shapes = {(e.height, e.width) for e in own}
        modes = {(e.sp, e.cfg) for e in own}
        grids.append(
            Grid(
                batch,
                tuple(sorted(shapes, key=lambda shape: (image_tokens(*shape), shape))),
                tuple(sorted(modes, key=lambda mode: (mode[0] * mode[1], mode[1]))),
                {((e.height, e.width), (e.sp, e.cfg)): e for e in own},
            )
        )
    return grids

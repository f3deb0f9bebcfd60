"""Where the latency table of a server comes from: given, an asset, the cache, or measured now."""

import logging
import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from tetriserve_backend.domain import LatencyTableError
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_profiling.conditions import Conditions
from tetriserve_profiling.profiler import OUT_OF_MEMORY

_log = logging.getLogger(__name__)
_SUFFIX = ".latency.json"
_SOURCES_BY_TRUST = ("measured", "published")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class TableIdentity:
    """What a latency table must have been measured on to be of use here.

    Attributes:
        directory: name of the model's folder; tells one build of an embedded model from the next.
        text_tokens: length of the text stream: it is part of every step, and decides which degrees there are.
        asked: (height, width) that the settings ask for; must be among the profiled ones of any table.
        measured: (height, width) that a table measured at start profiles.
        conditions: how the model computes; a table that does not tell is taken to agree.
    """

    model: str
    directory: str
    device: str
    world_size: int
    dtype: str
    text_tokens: int
    asked: tuple[tuple[int, int], ...]
    measured: tuple[tuple[int, int], ...]
    conditions: Conditions

    @property
    def file_name(self) -> str:
        """The file of the table that is measured for this identity: another identity has another file."""
        shapes = sha256(repr(self.measured).encode()).hexdigest()[:8]
        parts = [self.directory, self.device, f"w{self.world_size}", self.dtype, f"t{self.text_tokens}", shapes]
        parts += self.conditions.words
        return "-".join(_UNSAFE.sub("_", part) for part in parts) + _SUFFIX

    def matches(self, table: LatencyTable) -> bool:
        """Whether `table` is of this model on these ranks, under whatever conditions, at all shapes asked for."""
        same = (table.model, table.device, table.world_size, table.dtype) == (
            self.model,
            self.device,
            self.world_size,
            self.dtype,
        )
        # A table made by hand need not tell its text length.
        same = same and table.text_tokens in (None, self.text_tokens)
        return same and set(self.asked) <= set(table.resolutions)


async def resolve_table(
    identity: TableIdentity,
    given: Path | None,
    assets: Path,
    cache: Path,
    measure: Callable[[], Awaitable[LatencyTable]],
) -> LatencyTable:
    """The table to serve with.

    A given one is taken as it is, with a warning where it was measured under other conditions. Else one that
    matches, among the assets of the model and then in the cache: a measured one rather than a published one, and
    never an analytic one, because what can be measured here need not be computed. Else `measure` makes one, which is
    written to both, unless it lacks what might be had another time. (Under `tetriserve serve` the assets are those of
    the server's working copy of the model repository, which goes when the server stops; the cache stays.)

    Raises:
        LatencyTableError: the given table cannot be read.
    """
    if given is not None:
        named = LatencyTable.load(given)
        if differences := identity.conditions.differences(named.settings):
            _log.warning(
                "latency table %s: measured with other %s; it is used all the same", given, ", ".join(differences)
            )
        return named
    paths = (*sorted(assets.glob(f"*{_SUFFIX}")), cache / identity.file_name)
    matching = [(path, table) for path in paths if (table := _load_matching(path, identity)) is not None]
    for source in _SOURCES_BY_TRUST:
        for path, table in matching:
            if table.source == source:
                _log.info("latency table: %s", path)
                if path.parent != assets:
                    _save(table, [assets / identity.file_name])
                return table
    _log.info("no latency table for %s on %d × %s: measuring one", identity.model, identity.world_size, identity.device)
    table = await measure()
    if problems := _passing_problems(table):
        _log.warning("the latency table lacks entries and is not kept for the next time: %s", "; ".join(problems))
    else:
        _save(table, [assets / identity.file_name, cache / identity.file_name])
    return table


def _passing_problems(table: LatencyTable) -> list[str]:
    """Why entries are absent that may be there another time: ranks were lost, say. What is too large stays so."""
    reasons = {entry["reason"] for entry in table.to_dict().get("absent", [])}
    return sorted(reason for reason in reasons if not reason.startswith(OUT_OF_MEMORY))


def _load_matching(path: Path, identity: TableIdentity) -> LatencyTable | None:
    if not path.exists():
        return None
    try:
        table = LatencyTable.load(path)
    except LatencyTableError as error:
        _log.warning("%s; it is left aside", error)
        return None
    if not identity.matches(table):
        return None
    if differences := identity.conditions.differences(table.settings):
        _log.info("latency table %s: measured with other %s; it is left aside", path, ", ".join(differences))
        return None
    return table


def _save(table: LatencyTable, paths: Iterable[Path]) -> None:
    for path in paths:
        try:
            table.save(path)
        except OSError as error:
            # A read-only model repository costs the next start a measurement, not this one its life.
            _log.warning("the latency table could not be written to %s: %s", path, error)
        else:
            _log.info("latency table written to %s", path)

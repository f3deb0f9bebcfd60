"""The file format of a latency table, checked field by field."""

from collections.abc import Hashable, Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tetriserve_backend.domain import PIXELS_PER_TOKEN_SIDE, LatencyTableError
from tetriserve_backend.domain.validation import what_is_wrong

SCHEMA = "tetriserve.latency_table/1"

_Side = Annotated[int, Field(gt=0, multiple_of=PIXELS_PER_TOKEN_SIDE)]
_Count = Annotated[int, Field(ge=1)]
_Seconds = Annotated[float, Field(ge=0)]
_Ranks = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class _Part(BaseModel):
    """Unknown keys are kept, so that a newer writer loses nothing when an older reader saves the file."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow", allow_inf_nan=False)


class _Entry(_Part):
    """What was measured of one piece of work.

    Attributes:
        cv: standard deviation of the samples over their mean; None where nothing was measured.
        samples: how many there were.
        memory_bytes: the most that any one rank held.
    """

    cv: _Seconds | None = None
    samples: _Count | None = None
    memory_bytes: _Count | None = None


class StepEntry(_Entry):
    """Seconds of one denoising step of `batch` images on `sp` × `cfg` ranks.

    `cfg` = 2 means that one half of the ranks computes the pass without the prompt and the other the pass with it.
    A table of a model with classifier-free guidance holds the times of guided steps.
    """

    height: _Side
    width: _Side
    batch: _Count
    sp: _Count
    cfg: Annotated[int, Field(ge=1, le=2)] = 1
    seconds: Annotated[float, Field(gt=0)]

    @property
    def ranks(self) -> int:
        """How many ranks share the step."""
        return self.sp * self.cfg


class EncodeEntry(_Entry):
    """Seconds of the text encoders for `batch` prompts on one rank.

    Only that of one prompt counts, and only that is written: the requests of an encode share their prompt.
    """

    batch: _Count
    seconds: _Seconds


class DecodeEntry(_Entry):
    """Seconds of the VAE for one image on one rank."""

    height: _Side
    width: _Side
    seconds: _Seconds


class MoveEntry(_Part):
    """What it costs to move a latent between placements.

    Attributes:
        before, after: ranks of the world, each once; `from` and `to` in the file.
        seconds: beyond going on where the latent is.
        share_of_step: the same over the step that follows.
        between_seconds: from the last segment on the old ranks to the first on the new ones.
    """

    height: _Side
    width: _Side
    before: Annotated[_Ranks, Field(alias="from")]
    after: Annotated[_Ranks, Field(alias="to")]
    seconds: _Seconds
    share_of_step: _Seconds
    between_seconds: _Seconds


class AbsentEntry(_Part):
    """Work that cannot be had, and why. What its kind has no use for is 0 or 1."""

    kind: Literal["step", "encode", "decode"]
    height: int = 0
    width: int = 0
    batch: int = 1
    sp: int = 1
    cfg: int = 1
    reason: str


class TableDocument(_Part):
    """A whole `*.latency.json`.

    Attributes:
        guided: whether steps are those of a guided request, which a model with classifier-free guidance runs in two
            passes; None where the file does not tell.
        settings: what else the times depend on.
        hand_over, absent: what a profile found beside the times.
        shared_counts: what each sequence-parallel degree must divide besides the image tokens, by name (attention
            heads, say); None where the file does not tell.
    """

    schema_: Annotated[Literal["tetriserve.latency_table/1"], Field(alias="schema")]
    model: str
    device: str
    world_size: _Count
    dtype: str
    source: Literal["measured", "analytic", "published"]
    software: dict[str, str] = {}
    step: Annotated[list[StepEntry], Field(min_length=1)]
    encode: Annotated[list[EncodeEntry], Field(min_length=1)]
    decode: Annotated[list[DecodeEntry], Field(min_length=1)]
    dispatch_seconds: _Seconds
    text_tokens: _Count | None = None
    guided: bool | None = None
    settings: dict[str, Any] = {}
    hand_over: list[MoveEntry] = []
    absent: list[AbsentEntry] = []
    shared_counts: dict[str, _Count] | None = None

    @property
    def is_guided(self) -> bool:
        """Whether steps are those of guided requests: as the file tells, or shows by splits of the guidance."""
        return any(entry.cfg > 1 for entry in self.step) if self.guided is None else self.guided


def parse_document(raw: object, origin: str) -> TableDocument:
    """Check what a file holds.

    Args:
        raw: the parsed JSON.
        origin: the name by which errors call the file.

    Raises:
        LatencyTableError: names the file, the field with its index, what was expected there, and the fix.
    """
    if not isinstance(raw, dict):
        got = type(raw).__name__
        raise refusal(origin, "", f"expected a JSON object, got {got}", "name a file that `tetriserve profile` wrote")
    try:
        document = TableDocument.model_validate(raw)
    except ValidationError as error:
        raise _explain(error, origin) from None
    _check_consistency(document, origin)
    return document


def refusal(origin: str, field: str, problem: str, fix: str, allowed: str = "") -> LatencyTableError:
    """The error for a table that cannot be used: file, field if it is one field's, what is wrong, and the way out."""
    where = f"{field}: " if field else ""
    return LatencyTableError(f"latency table {origin}: {where}{problem}; fix: {fix}", allowed)


def dump_document(document: TableDocument) -> dict[str, Any]:
    """The document as JSON values: every key that was read, known or not, and nothing else."""
    return document.model_dump(by_alias=True, exclude_unset=True)


def _explain(error: ValidationError, origin: str) -> LatencyTableError:
    first = error.errors(include_url=False)[0]
    field = ""
    for part in first["loc"]:
        field += f"[{part}]" if isinstance(part, int) else f".{part}" if field else str(part)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    meaning = _meaning(first["loc"])
    if first["type"] == "missing":
        return refusal(origin, field, f"missing; expected by schema {SCHEMA}{more}", f"add {meaning}")
    if field == "schema":
        fix = f"profile again with this version, which reads {SCHEMA}, or use the version that wrote the file"
    else:
        fix = f"replace it by {meaning}"
    return refusal(origin, field, f"{what_is_wrong(first)}, got {first['input']!r:.80}{more}", fix)


def _meaning(loc: tuple[int | str, ...]) -> str:
    """What belongs at that place of the file."""
    names = [part for part in loc if isinstance(part, str)]
    if names[0] in _FREE_KEYS and len(names) > 1:
        return _FREE_KEYS[names[0]]
    return _MEANINGS[f"{names[-1]}[]" if isinstance(loc[-1], int) else names[-1]]


def _check_consistency(document: TableDocument, origin: str) -> None:
    for index, entry in enumerate(document.step):
        if entry.ranks > document.world_size:
            problem = f"expected sp × cfg of at most world_size = {document.world_size}, got {entry.ranks}"
            raise refusal(origin, f"step[{index}].sp", problem, "remove the entry, or correct world_size")
    for index, move in enumerate(document.hand_over):
        for key, ranks in (("from", move.before), ("to", move.after)):
            _check_ranks(ranks, document.world_size, f"hand_over[{index}].{key}", origin)
    _check_unique("step", ((e.height, e.width, e.batch, e.sp, e.cfg) for e in document.step), origin)
    _check_unique("encode", (e.batch for e in document.encode), origin)
    _check_unique("decode", ((e.height, e.width) for e in document.decode), origin)
    moves = ((m.height, m.width, tuple(m.before), tuple(m.after)) for m in document.hand_over)
    _check_unique("hand_over", moves, origin)
    for name, batches in (("step", {e.batch for e in document.step}), ("encode", {e.batch for e in document.encode})):
        if 1 not in batches:
            problem = "expected at least one entry with batch = 1"
            raise refusal(origin, name, problem, "measure with 1 among the --batches of `tetriserve profile`")


def _check_ranks(ranks: Sequence[int], world_size: int, field: str, origin: str) -> None:
    if len(set(ranks)) < len(ranks):
        raise refusal(origin, field, f"expected each rank once, got {ranks}", "remove the repetition")
    if max(ranks) >= world_size:
        problem = f"expected ranks below world_size = {world_size}, got {max(ranks)}"
        raise refusal(origin, field, problem, "remove the entry, or correct world_size")


def _check_unique(name: str, keys: Iterable[Hashable], origin: str) -> None:
    first_index: dict[Hashable, int] = {}
    for index, key in enumerate(keys):
        if key in first_index:
            problem = f"duplicate of {name}[{first_index[key]}]; expected one entry per {_KEY_FIELDS[name]}"
            raise refusal(origin, f"{name}[{index}]", problem, "remove one of the two")
        first_index[key] = index


_KEY_FIELDS = {
    "step": "(height, width, batch, sp, cfg)",
    "encode": "batch",
    "decode": "(height, width)",
    "hand_over": "(height, width, from, to)",
}
_TIME = "the seconds that `tetriserve profile` measures"
_SIDE = "pixels, a positive multiple of 16"
_RANKS, _RANK = "the ranks, at least one", "a rank, at least 0 and below world_size"
_MEANINGS = {
    "schema": f'"{SCHEMA}"',
    "model": "the model as the server's settings name it",
    "device": "the product name of the device",
    "world_size": "the number of ranks, at least 1",
    "dtype": "torch's name of the weights' type, such as bfloat16",
    "source": "measured, analytic or published",
    "step": "a list of step times, as `tetriserve profile` measures them",
    "step[]": "an object with height, width, batch, sp and seconds",
    "encode": "a list of encode times, as `tetriserve profile` measures them",
    "encode[]": "an object with batch and seconds",
    "decode": "a list of decode times, as `tetriserve profile` measures them",
    "decode[]": "an object with height, width and seconds",
    "seconds": _TIME,
    "dispatch_seconds": f"{_TIME}, or 0",
    "cv": "the standard deviation over the mean, or nothing",
    "samples": "how many there were, or nothing",
    "height": _SIDE,
    "width": _SIDE,
    "batch": "the number of images, at least 1",
    "sp": "the sequence-parallel degree, at least 1",
    "cfg": "1, or 2 where the guidance is split over the ranks",
    "memory_bytes": "the most bytes that one rank held, or nothing",
    "hand_over": "a list of moves, as `tetriserve profile` measures them, or nothing",
    "hand_over[]": "an object with height, width, from, to, seconds, share_of_step and between_seconds",
    "from": f"{_RANKS}, that had the latent before",
    "from[]": _RANK,
    "to": f"{_RANKS}, that go on with the latent",
    "to[]": _RANK,
    "share_of_step": "the move's seconds over those of the step that follows, at least 0",
    "between_seconds": "the seconds between the last segment before the move and the first behind it, at least 0",
    "absent": "a list of entries with their reasons, as `tetriserve profile` writes them, or nothing",
    "absent[]": "an object with kind and reason, and what else tells the entry",
    "kind": "step, encode or decode",
    "reason": "why the entry cannot be had, as text",
    "text_tokens": "the length of the text stream, or nothing",
    "guided": "true where steps are those of guided requests, else false, or nothing",
    "settings": "an object of what else the times depend on, by name, or nothing",
    "software": "an object of versions by package, or nothing",
    "shared_counts": "an object of what each sequence-parallel degree must divide, by name, or nothing",
}
"""By the last key of a place, with [] for an item of the list of that key."""
_FREE_KEYS = {"software": 'the version as text, such as "2.13.0"', "shared_counts": "a number of at least 1"}
"""Of what belongs into objects whose keys are anybody's."""

"""What a request may ask of the model that it names, and what that model gives it by default; pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from tetriserve_backend.domain import InvalidRequestError, LatencyTableError
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_backend.triton_adapter.request_spec import RequestSpec

_DEFAULT_GUIDANCE_SCALE = 3.5


def served_model(asked: str, served: Sequence[str]) -> str:
    """The name of the model that a request means: the only one where it names none.

    Raises:
        InvalidRequestError: it is not served, or several are and none is named.
    """
    if asked in served:
        return asked
    if not asked and len(served) == 1:
        return served[0]
    raise InvalidRequestError("model", f"got '{asked}'" if asked else "missing", ", ".join(served) or "none at present")


def resolution_check(table: LatencyTable, is_compiled: bool) -> Callable[[int, int], None]:
    """What refuses a (height, width) that a model is not served at, as `fitted_to_model` takes it.

    A compiled model is served at those that its table has entries for: any other would be compiled while requests
    wait, for longer than a segment may take.
    """
    if not is_compiled:
        return table.check_resolution

    def check(height: int, width: int) -> None:
        if (height, width) not in table.resolutions:
            allowed = ", ".join(f"{rows}x{columns}" for rows, columns in table.resolutions)
            raise LatencyTableError(f"{height}x{width} is not compiled; compiled at start: {allowed}", allowed)

    return check


def fitted_to_model(
    spec: RequestSpec, facts: Mapping[str, object], check_resolution: Callable[[int, int], None]
) -> RequestSpec:
    """`spec` with the model's name and defaults; what the model cannot do is refused rather than ignored.

    Args:
        spec: valid by itself.
        facts: what is known of the model: `model` (its name), `max_sequence_length` and, where it matters,
            `text_multiple`, `supports_negative_prompt` (false if absent), `default_guidance_scale` and `max_side`
            (pixels).
        check_resolution: raises `LatencyTableError` for a (height, width) that the model is not served at; what it says
            to be `allowed` goes to the client.

    Raises:
        InvalidRequestError: names the field.
    """
    name = str(facts["model"])
    if spec.negative_prompt and not facts.get("supports_negative_prompt", False):
        problem = f"model {name} has no true classifier-free guidance and would ignore it"
        raise InvalidRequestError("negative_prompt", problem, "none, or a model with such guidance (SD3)")
    text_tokens = _own_text_tokens(spec.max_sequence_length, int(str(facts["max_sequence_length"])), facts)
    max_side = facts.get("max_side")
    for field, side in (("height", spec.height), ("width", spec.width)):
        if isinstance(max_side, int) and side > max_side:
            raise InvalidRequestError(field, f"got {side}", f"at most {max_side} pixels with model {name}")
    try:
        check_resolution(spec.height, spec.width)
    except LatencyTableError as error:
        raise InvalidRequestError("height, width", f"got {spec.height}x{spec.width}", error.allowed) from error
    guidance_scale = spec.guidance_scale
    if guidance_scale is None:
        guidance_scale = float(str(facts.get("default_guidance_scale", _DEFAULT_GUIDANCE_SCALE)))
    return replace(spec, model=name, guidance_scale=guidance_scale, max_sequence_length=text_tokens)


def _own_text_tokens(asked: int | None, longest: int, facts: Mapping[str, object]) -> int | None:
    """T5's tokens of a request that are not as many as others'; padding takes part in attention, so they matter.

    More than `longest` would take longer than the latency table tells; fewer take no longer.
    """
    multiple = facts.get("text_multiple")
    if asked is None or asked == longest:
        return None
    if isinstance(multiple, int) and asked < longest and asked % multiple == 0:
        return asked
    shorter = f" or a smaller multiple of {multiple}" if isinstance(multiple, int) else ""
    allowed = f"{longest}{shorter}, as this server is set up (model.max_sequence_length)"
    raise InvalidRequestError("max_sequence_length", f"got {asked}", allowed)

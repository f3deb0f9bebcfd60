"""The metadata of a finished image, as far as denoise knows it."""

from tetriserve_backend.engine.async_engine import Answer
from tetriserve_backend.engine.commands import SegmentRecord
from tetriserve_backend.triton_adapter.request_spec import RENDERING_KEY, RequestSpec, dump_rendering

_DIGITS = 6


def final_metadata(answer: Answer, spec: RequestSpec) -> dict[str, object]:
    """JSON values; times are seconds, points in time count from the request's arrival.

    Postprocess takes `RENDERING_KEY` away and adds `image_encode_s`, `total_s` and `deadline_met`.
    """
    arrival_s = spec.arrival_s
    first_start_s = min((record.start_s for record in answer.segments), default=arrival_s)
    return {
        "request_id": spec.request_id,
        "seed": spec.seed,
        "height": spec.height,
        "width": spec.width,
        "num_inference_steps": spec.num_inference_steps,
        "latency_threshold": spec.latency_threshold,
        "admitted": True,
        "expected_on_time": answer.predicted_finish_s <= answer.request.deadline_s,
        "predicted_finish_s": round(answer.predicted_finish_s - arrival_s, _DIGITS),
        "queue_s": round(first_start_s - arrival_s, _DIGITS),
        **{f"{kind}_s": _duration_s(answer.segments, kind) for kind in ("encode", "denoise", "decode")},
        "segments": [_segment(record, arrival_s) for record in answer.segments],
        RENDERING_KEY: dump_rendering(spec.rendering),
    }


def _duration_s(segments: tuple[SegmentRecord, ...], kind: str) -> float:
    return round(sum(record.end_s - record.start_s for record in segments if record.kind == kind), _DIGITS)


def _segment(record: SegmentRecord, arrival_s: float) -> dict[str, object]:
    return {
        "kind": record.kind,
        "ranks": list(record.ranks),
        "sp_degree": len(record.ranks),
        "first_step": record.first_step,
        "steps": record.num_steps,
        "start_s": round(record.start_s - arrival_s, _DIGITS),
        "duration_s": round(record.end_s - record.start_s, _DIGITS),
    }

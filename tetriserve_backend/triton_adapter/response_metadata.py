"""The metadata of progress and of finished images, as far as denoise knows it."""

from tetriserve_backend.engine.commands import SegmentRecord
from tetriserve_backend.engine.request_listener import Answer
from tetriserve_backend.triton_adapter.request_spec import RequestSpec

_DIGITS = 6
PROGRESS, IMAGE = "progress", "image"
"""What a response may be, as its `type` tells."""


def progress_metadata(spec: RequestSpec, index: int, step: int) -> dict[str, object]:
    """JSON values: `step` steps of image `index` are done."""
    return {"type": PROGRESS, **_which(spec, index), "step": step, "num_inference_steps": spec.num_inference_steps}


def image_metadata(answer: Answer, spec: RequestSpec, index: int) -> dict[str, object]:
    """JSON values of image `index`; times are seconds, points in time count from the request's arrival.

    Postprocess adds `image_encode_s`, `total_s` and `deadline_met`.
    """
    arrival_s = spec.arrival_s
    first_start_s = min((record.start_s for record in answer.segments), default=arrival_s)
    return {
        "type": IMAGE,
        **_which(spec, index),
        "model": spec.model,
        "seed": answer.request.seed,
        "height": spec.height,
        "width": spec.width,
        "num_inference_steps": spec.num_inference_steps,
        "guidance_scale": spec.guidance_scale,
        "latency_threshold": spec.latency_threshold,
        "admitted": True,
        "expected_on_time": answer.predicted_finish_s <= answer.request.deadline_s,
        "predicted_finish_s": round(answer.predicted_finish_s - arrival_s, _DIGITS),
        "queue_s": round(first_start_s - arrival_s, _DIGITS),
        **{f"{kind}_s": _duration_s(answer.segments, kind) for kind in ("encode", "denoise", "decode")},
        "segments": [_segment(record, arrival_s) for record in answer.segments],
    }


def _which(spec: RequestSpec, index: int) -> dict[str, object]:
    return {"request_id": spec.request_id, "image_index": index, "num_images": spec.num_images}


def _duration_s(segments: tuple[SegmentRecord, ...], kind: str) -> float:
    return round(sum(record.end_s - record.start_s for record in segments if record.kind == kind), _DIGITS)


def _segment(record: SegmentRecord, arrival_s: float) -> dict[str, object]:
    return {
        "kind": record.kind,
        "ranks": list(record.ranks),
        "sp_degree": len(record.ranks) // record.cfg_degree,
        "cfg_degree": record.cfg_degree,
        "batch_size": record.batch_size,
        "first_step": record.first_step,
        "steps": record.num_steps,
        "start_s": round(record.start_s - arrival_s, _DIGITS),
        "duration_s": round(record.end_s - record.start_s, _DIGITS),
    }

"""From a spec to requests."""

from collections.abc import Iterator

import numpy as np

from tetriserve_backend.simulator.trace import TraceRequest
from tetriserve_backend.simulator.workload.arrivals import arrival_times_s
from tetriserve_backend.simulator.workload.spec import WorkloadSpec

_CHUNK = 4096


def generate(spec: WorkloadSpec) -> Iterator[TraceRequest]:
    """The requests of a workload, in order of arrival; any number of them in the memory of one chunk."""
    streams = [np.random.default_rng(child) for child in np.random.SeedSequence(spec.seed).spawn(5)]
    arrival_draw, shape_draw, slo_draw, step_draw, prompt_draw = streams
    weights = spec.weights()
    shapes = list(weights)
    slo_s = [spec.base_slo_s(*shape) for shape in shapes]
    edges = np.cumsum(list(weights.values()))[:-1]
    made = 0
    for times_s in arrival_times_s(spec, arrival_draw, _CHUNK):
        chosen = np.searchsorted(edges, shape_draw.random(_CHUNK), side="right").tolist()
        scales = slo_draw.integers(len(spec.slo_scales), size=_CHUNK).tolist()
        steps = step_draw.integers(spec.min_steps, spec.max_steps, size=_CHUNK, endpoint=True).tolist()
        prompts = prompt_draw.integers(max(1, len(spec.prompts)), size=_CHUNK).tolist()
        for index, time_s in enumerate(times_s.tolist()):
            if made == spec.requests:
                return
            height, width = shapes[chosen[index]]
            yield TraceRequest(
                id=f"r{made}",
                arrival_s=round(time_s, 6),
                height=height,
                width=width,
                num_inference_steps=steps[index],
                slo_s=round(slo_s[chosen[index]] * spec.slo_scales[scales[index]], 6),
                prompt=spec.prompts[prompts[index]] if spec.prompts else "",
                seed=made,
            )
            made += 1

"""Seconds of steps, encodes and decodes."""

import pytest

from tetriserve_backend.domain import ConfigurationError
from tetriserve_profiling.analytic.calibration import load_calibration
from tetriserve_profiling.analytic.catalog import shipped_names
from tetriserve_profiling.analytic.gpu import load_gpu
from tetriserve_profiling.analytic.model import load_model
from tetriserve_profiling.analytic.passes import ForwardPass
from tetriserve_profiling.analytic.pipeline import Pipeline, transformer_layers

SIDES = (256, 512, 1024, 2048)


def make_pipeline(model="FLUX.1-dev", gpu="H100", software="eager"):
    return Pipeline(load_model(model), load_gpu(gpu), load_calibration(), software)


@pytest.mark.parametrize("gpu", shipped_names("gpus"))
@pytest.mark.parametrize("model", shipped_names("models"))
def test_more_pixels_and_more_images_take_no_less_time(model, gpu):
    pipeline = make_pipeline(model, gpu)
    for sp in (1, 2):
        steps = [pipeline.step_s(side, side, sp=sp) for side in SIDES]
        assert steps == sorted(steps) and steps[-1] > 2 * steps[0]
        batches = [pipeline.step_s(1024, 1024, batch, sp) for batch in (1, 2, 4)]
        assert batches == sorted(batches)
    decodes = [pipeline.decode_s(side, side) for side in SIDES]
    assert decodes == sorted(decodes)


@pytest.mark.parametrize("model", shipped_names("models"))
def test_no_number_of_ranks_is_more_than_its_share_of_the_work(model):
    for software in ("eager", "compile"):
        pipeline = make_pipeline(model, software=software)
        alone = pipeline.step_s(2048, 2048)
        for sp in (2, 4, 8):
            assert alone / sp < pipeline.step_s(2048, 2048, sp=sp) < alone


def test_small_images_on_many_ranks_take_as_long_as_the_host_needs_to_launch():
    pipeline = make_pipeline()
    assert pipeline.step_s(256, 256, sp=8) == pipeline.step_s(512, 512, sp=8) > pipeline.step_s(256, 256)
    quick_host = load_calibration()
    eager = quick_host.software["eager"].model_copy(update={"launch_us": 0.0, "collective_host_us": 0.0})
    quick_host = quick_host.model_copy(update={"software": {"eager": eager}})
    unbound = Pipeline(pipeline.model, pipeline.gpu, quick_host)
    assert unbound.step_s(256, 256, sp=8) < unbound.step_s(512, 512, sp=8) < pipeline.step_s(256, 256, sp=8)


def test_weights_are_read_however_few_tokens_there_are():
    pipeline = make_pipeline(gpu="A40", software="compile")
    tiny = pipeline.model.model_copy(update={"text_tokens": 1})
    weight_s = 11.9e9 * 2 / (pipeline.gpu.memory_bytes_per_s * pipeline.calibration.achieved.memory)
    assert Pipeline(tiny, pipeline.gpu, pipeline.calibration, "compile").step_s(16, 16) >= 0.99 * weight_s


def test_pairs_on_a_bridge_scale_better_than_four_over_the_bus():
    pipeline = make_pipeline(gpu="A40")
    alone, two, four = (pipeline.step_s(1024, 1024, sp=sp) for sp in (1, 2, 4))
    assert alone / (2 * two) > 0.9
    assert alone / (4 * four) < 0.85
    switched = pipeline.gpu.model_copy(update={"links": load_gpu("A100").links})
    assert Pipeline(pipeline.model, switched, pipeline.calibration).step_s(1024, 1024, sp=4) < 0.95 * four


def test_more_ranks_than_links_join_are_refused():
    with pytest.raises(ConfigurationError, match="join at most 8 GPUs, not 16"):
        make_pipeline().step_s(1024, 1024, sp=16)


def test_split_guidance_halves_the_work_and_pays_for_one_exchange():
    pipeline = make_pipeline("SD3-medium")
    both, split = pipeline.step_s(2048, 2048), pipeline.step_s(2048, 2048, cfg=2)
    assert both / 2 < split < 0.51 * both
    # One exchange a step is cheaper than two in each layer.
    assert split < pipeline.step_s(2048, 2048, sp=2)


def test_a_guided_encode_is_two():
    guided = make_pipeline("SD3-medium")
    plain = Pipeline(guided.model.model_copy(update={"guided": False}), guided.gpu, guided.calibration)
    assert guided.encode_s() == pytest.approx(2 * plain.encode_s())


def test_compiled_code_is_faster_where_memory_or_the_host_bounds():
    for side in SIDES:
        assert make_pipeline(software="compile").step_s(side, side) < make_pipeline().step_s(side, side)


def test_faster_memory_helps():
    assert make_pipeline(gpu="H200").step_s(1024, 1024) < make_pipeline(gpu="H100").step_s(1024, 1024)


def test_text_that_the_degree_does_not_divide_is_padded_for_sd3():
    layers = transformer_layers(load_model("SD3-medium"), ForwardPass(256, 333, rows=2, degree=2))
    padded = transformer_layers(load_model("SD3-medium"), ForwardPass(256, 334, rows=2, degree=2))
    assert layers == padded


def test_weights_of_the_whole_pipeline():
    assert make_pipeline().weight_bytes() / 1e9 == pytest.approx(2 * (11.90 + 4.76 + 0.12 + 0.05), rel=0.01)

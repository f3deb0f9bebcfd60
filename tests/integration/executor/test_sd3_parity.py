"""Whatever the ranks, degrees and splits, Stable Diffusion 3 makes the image that diffusers makes."""

import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.integration.executor.conftest import Reference, four_ranks, shared_memories
from tests.integration.executor.driver import CREATE, RESIDENT, Driver, Schedule, broadcast, make_request
from tests.integration.executor.test_parity import ALL, ONE_TWO_FOUR_ONE, assert_same_image
from tetriserve_backend.engine.commands import HandOver
from tetriserve_backend.engine.events import SegmentFailed, SegmentFinished
from tetriserve_backend.engine.executor_port import StepProgress
from tetriserve_backend.executor.config import ExecutorSettings, ModelSettings
from tetriserve_backend.executor.placements import usable_degrees

T5_TOKENS = 64
GUIDED, UNGUIDED = 5.0, 1.0


@pytest.fixture(scope="module")
def sd35(tiny_sd35: Path) -> Iterator[Driver]:
    """Four ranks with a model that has two attentions in one block, and norms of queries and keys."""
    settings = ExecutorSettings(world_size=4)
    with four_ranks(ModelSettings(path=str(tiny_sd35)), settings, has_core_per_thread=False) as driver:
        yield driver


def test_ranks_without_a_core_for_each_thread_share_no_memory(sd35: Driver) -> None:
    assert shared_memories(sd35) == {0}


@pytest.mark.parametrize("guidance_scale", [GUIDED, UNGUIDED])
@pytest.mark.parametrize(("height", "width"), [(256, 256), (128, 384)])
def test_changing_degree_gives_the_image_of_diffusers(
    sd35: Driver, reference: Reference, tiny_sd35: Path, height: int, width: int, guidance_scale: float
) -> None:
    request = make_request(height, width, guidance_scale=guidance_scale, negative_prompt="blurred, dark")
    ours = sd35.generate(request, ONE_TWO_FOUR_ONE)
    assert_same_image(ours, reference(tiny_sd35, request, T5_TOKENS))


@pytest.mark.parametrize(
    ("schedule", "split"),
    [
        pytest.param((((0, 1), 4),), (0,), id="2x1"),
        pytest.param(((ALL, 4),), (0,), id="2x2"),
        pytest.param((((2, 3), 1), (ALL, 1), ((0, 1), 1), ((3,), 1)), (0, 1), id="then-together"),
        pytest.param((((1,), 1), ((0, 1), 1), (ALL, 1), ((2, 3), 1)), (2, 3), id="then-apart"),
    ],
)
@pytest.mark.parametrize("guidance_scale", [GUIDED, UNGUIDED])
def test_guidance_split_between_ranks_gives_the_image_of_diffusers(
    sd35: Driver, reference: Reference, tiny_sd35: Path, schedule: Schedule, split: Sequence[int], guidance_scale: float
) -> None:
    request = make_request(guidance_scale=guidance_scale, seed=3)
    ours = sd35.generate(request, schedule, split=split)
    assert_same_image(ours, reference(tiny_sd35, request, T5_TOKENS))


@pytest.mark.parametrize(("ranks", "cfg_degree"), [((1,), 1), ((0, 1), 1), ((0, 1), 2), (ALL, 2)])
def test_batch_of_unlike_requests_gives_each_its_image(
    sd35: Driver, reference: Reference, tiny_sd35: Path, ranks: tuple[int, ...], cfg_degree: int
) -> None:
    """They differ in prompt, guidance, seed and number of steps, and one has two steps behind it."""
    requests = [
        make_request(seed=1, num_steps=3, guidance_scale=GUIDED, prompt="a red fox"),
        make_request(seed=2, num_steps=5, guidance_scale=UNGUIDED, prompt="a boat"),
        make_request(seed=3, num_steps=4, guidance_scale=7.5, prompt="a hill", negative_prompt="trees"),
    ]
    root = ranks[0]
    commands = [sd35.encode(request, root) for request in requests]
    commands.append(sd35.denoise(requests[2], (root,), 0, 2, RESIDENT, CREATE))
    commands += [sd35.denoise(request, (root,), 0, 1, RESIDENT, CREATE) for request in requests[:2]]
    from_root = broadcast(root) if len(ranks) > 1 else RESIDENT
    hand_over = HandOver(from_root, from_root)
    commands.append(sd35.batch(requests, ranks, hand_over, [(1, 2), (1, 4), (2, 2)], cfg_degree))
    commands += [sd35.decode(request, root, RESIDENT) for request in requests]
    outcomes = sd35.run(commands)
    assert all(isinstance(outcome, SegmentFinished) for outcome in outcomes), outcomes
    for request in requests:
        assert_same_image(sd35.image(request), reference(tiny_sd35, request, T5_TOKENS))


def test_text_of_any_length_is_shared(sd35: Driver) -> None:
    facts = sd35.executor.facts
    assert facts.text_tokens == 77 + T5_TOKENS
    assert usable_degrees(4, *facts.shared_counts.values()) == (1, 2, 4)
    assert facts.supports_negative_prompt


def test_shorter_text_of_one_request_is_the_one_of_diffusers(
    sd35: Driver, reference: Reference, tiny_sd35: Path
) -> None:
    request = make_request(guidance_scale=GUIDED, max_sequence_length=13)
    ours = sd35.generate(request, (((0,), 1), (ALL, 2), ((2, 3), 1)), split=(1,))
    assert_same_image(ours, reference(tiny_sd35, request, 13))
    assert (ours != reference(tiny_sd35, request, T5_TOKENS)).any()


def test_negative_prompt_changes_the_image(sd35: Driver) -> None:
    plain = sd35.generate(make_request(guidance_scale=GUIDED), (((0,), 4),))
    against = sd35.generate(make_request(guidance_scale=GUIDED, negative_prompt="fox"), (((0,), 4),))
    assert (plain != against).any()


def test_image_larger_than_the_position_table_is_refused(sd35: Driver) -> None:
    request = make_request(528, 128)
    refused = sd35.run([sd35.encode(request, 0), sd35.denoise(request, (0,), 0, 4, RESIDENT, CREATE)])
    assert all(isinstance(outcome, SegmentFailed) for outcome in refused)
    assert "528 x 128 pixels; allowed: up to 512 on each side" in refused[0].reason
    sd35.executor.release(request.request_id)


def test_guidance_of_one_rank_cannot_be_split(sd35: Driver) -> None:
    request = make_request()
    outcomes = sd35.run([sd35.encode(request, 1), sd35.denoise(request, (1,), 0, 4, RESIDENT, CREATE, cfg_degree=2)])
    assert isinstance(outcomes[1], SegmentFailed)
    assert "guidance of an image cannot be split between 1 ranks" in outcomes[1].reason
    sd35.executor.release(request.request_id)


def test_last_preview_of_a_small_image_is_the_image(sd35: Driver) -> None:
    request = make_request(128, 96, guidance_scale=GUIDED, stream_progress=True, preview=True)
    previews, image = sd35.previews(request, (((0, 1), 4),))
    assert len(previews) == 4
    np.testing.assert_array_equal(previews[3], image)


def test_split_groups_work_again_after_a_failure(sd35: Driver, reference: Reference, tiny_sd35: Path) -> None:
    lost = make_request()
    outcomes = sd35.run([sd35.encode(lost, 0), sd35.denoise(lost, ALL, 0, 4, RESIDENT, CREATE, cfg_degree=2)])
    assert isinstance(outcomes[1], SegmentFailed)
    sd35.executor.release(lost.request_id)
    request = make_request(guidance_scale=GUIDED)
    ours = sd35.generate(request, (((2, 3), 1), (ALL, 2), ((0, 1), 1)), split=(1,))
    assert_same_image(ours, reference(tiny_sd35, request, T5_TOKENS))


def test_half_whose_other_half_lost_a_rank_serves_before_that_is_back(
    sd35: Driver, reference: Reference, tiny_sd35: Path
) -> None:
    struck = make_request(256, 256, num_steps=40, guidance_scale=GUIDED, stream_progress=True)
    assert isinstance(sd35.run([sd35.encode(struck, 0)])[0], SegmentFinished)
    hit = sd35.send(sd35.denoise(struck, ALL, 0, 40, broadcast(0), CREATE, cfg_degree=2))
    sd35.wait_for(StepProgress)
    os.kill(sd35.executor.worker_pids()[1], signal.SIGKILL)
    assert isinstance(sd35.outcomes([hit])[0], SegmentFailed)
    request = make_request(guidance_scale=GUIDED)
    ours = sd35.generate(request, (((2, 3), 4),), encode_on=2, decode_on=3)
    assert_same_image(ours, reference(tiny_sd35, request, T5_TOKENS))
    sd35.executor.release(struck.request_id)
    sd35.reform()


@pytest.fixture(scope="module")
def without_t5(tiny_sd3_without_t5: Path) -> Iterator[Driver]:
    """Two ranks, with a shorter text, that decode images of more than 256 × 256 pixels in tiles."""
    settings = ModelSettings(path=str(tiny_sd3_without_t5), max_sequence_length=40, vae_tiling_above=256 * 256)
    driver = Driver(settings, ExecutorSettings(world_size=2))
    try:
        yield driver.start()
    finally:
        driver.stop()


def test_without_the_third_text_encoder(without_t5: Driver, reference: Reference, tiny_sd3_without_t5: Path) -> None:
    request = make_request(guidance_scale=GUIDED)
    ours = without_t5.generate(request, (((0,), 1), ((0, 1), 3)), split=(1,))
    assert_same_image(ours, reference(tiny_sd3_without_t5, request, 40))


@pytest.mark.parametrize(("height", "width", "tiled"), [(384, 256, True), (256, 256, False)])
def test_only_large_images_are_decoded_in_tiles(
    without_t5: Driver, reference: Reference, tiny_sd3_without_t5: Path, height: int, width: int, tiled: bool
) -> None:
    request = make_request(height, width, num_steps=2)
    ours = without_t5.generate(request, (((0, 1), 2),))
    assert_same_image(ours, reference(tiny_sd3_without_t5, request, 40, tiled=tiled))
    if tiled:
        assert (ours != reference(tiny_sd3_without_t5, request, 40)).any()

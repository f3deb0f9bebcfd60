"""Whatever the ranks and degrees, the image is the one that diffusers makes."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tests.integration.executor.conftest import Reference, shared_memories
from tests.integration.executor.driver import CREATE, RESIDENT, Driver, Schedule, broadcast, make_request
from tetriserve_backend.domain import image_tokens
from tetriserve_backend.engine.commands import HandOver
from tetriserve_backend.engine.events import SegmentFailed, SegmentFinished
from tetriserve_backend.executor.config import ExecutorSettings, ModelSettings
from tetriserve_backend.executor.placements import usable_degrees

ALL = (0, 1, 2, 3)
ONE_TWO_FOUR_ONE: Schedule = (((0,), 1), ((0, 1), 1), (ALL, 1), ((3,), 1))


def assert_same_image(ours: np.ndarray, theirs: np.ndarray) -> None:
    """At most 1/255 per channel anywhere, and no grey card."""
    assert ours.shape == theirs.shape
    assert ours.std() > 10
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1


@pytest.mark.parametrize(("height", "width"), [(256, 256), (128, 384), (320, 192), (512, 512)])
def test_changing_degree_gives_the_image_of_diffusers(
    world: Driver, reference: Reference, tiny_model: Path, height: int, width: int
) -> None:
    request = make_request(height, width)
    ours = world.generate(request, ONE_TWO_FOUR_ONE)
    assert_same_image(ours, reference(tiny_model, request, 64))


def test_ranks_with_a_core_for_each_thread_share_memory_with_the_groups_they_are_in(world: Driver) -> None:
    assert shared_memories(world) == {2}


def test_latent_at_degree_one_is_bit_exact(world: Driver, reference: Reference, tiny_model: Path) -> None:
    request = make_request(192, 256, num_steps=6, guidance_scale=2.5)
    commands = world.whole(request, (((1,), 2), ((2,), 4)), encode_on=3)
    assert all(isinstance(outcome, SegmentFinished) for outcome in world.run(commands[:-1]))
    copy = world.executor.ranks._store.latent(request.request_id)
    assert copy is not None
    ours = np.frombuffer(copy.data, dtype=np.float32).reshape(copy.header.shape)
    np.testing.assert_array_equal(ours, reference(tiny_model, request, 64, latent=True))
    world.executor.release(request.request_id)


@pytest.mark.parametrize(
    "schedule",
    [
        pytest.param((((0,), 1), ((2, 3), 1), ((0, 1), 1), ((1,), 1)), id="disjoint"),
        pytest.param((((0, 1), 1), (ALL, 1), ((2, 3), 1), (ALL, 1)), id="overlapping"),
        pytest.param((((3,), 1), (ALL, 1), ((1,), 1), ((0, 1), 1)), id="root-is-not-lead"),
        pytest.param((((0, 1), 2), ((2, 3), 2)), id="disjoint-pairs"),
    ],
)
def test_hand_over_between_any_placements_keeps_the_image(
    world: Driver, reference: Reference, tiny_model: Path, schedule: Schedule
) -> None:
    request = make_request(seed=11)
    ours = world.generate(request, schedule, encode_on=1, decode_on=2)
    assert_same_image(ours, reference(tiny_model, request, 64))


def test_requests_on_different_ranks_do_not_disturb_each_other(
    world: Driver, reference: Reference, tiny_model: Path
) -> None:
    requests = [make_request(seed=seed, prompt=f"number {seed}") for seed in range(4)]
    schedules: list[Schedule] = [
        (((0, 1), 2), (ALL, 2)), (((2, 3), 3), ((2,), 1)), (((0,), 1), ((2, 3), 3)), (((1,), 4),),
    ]  # fmt: skip
    columns = [
        world.whole(request, schedule, encode_on=n, decode_on=n)
        for n, (request, schedule) in enumerate(zip(requests, schedules, strict=True))
    ]
    mixed = [column[row] for row in range(4) for column in columns if row < len(column)]
    assert all(isinstance(outcome, SegmentFinished) for outcome in world.run(mixed))
    for request in requests:
        assert_same_image(world.image(request), reference(tiny_model, request, 64))


def test_spans_of_one_rank_never_overlap(world: Driver) -> None:
    world.generate(make_request(), ONE_TWO_FOUR_ONE)
    for spans in world.spans.values():
        for before, after in pairwise(sorted(spans, key=lambda span: span.start_s)):
            assert before.end_s <= after.start_s


@pytest.mark.parametrize(("ranks", "cfg_degree"), [((2,), 1), ((0, 1), 1), (ALL, 1), (ALL, 2)])
def test_batch_of_unlike_requests_gives_each_its_image(
    world: Driver, reference: Reference, tiny_model: Path, ranks: tuple[int, ...], cfg_degree: int
) -> None:
    """They differ in prompt, guidance, seed and steps, and one has steps behind it. There is no guidance to split."""
    requests = [
        make_request(seed=1, num_steps=2),
        make_request(seed=2, num_steps=4, guidance_scale=1.5, prompt="a boat"),
        make_request(seed=3, num_steps=5, guidance_scale=7.0, prompt="a hill"),
    ]
    root = ranks[0]
    commands = [world.encode(request, root) for request in requests]
    commands.append(world.denoise(requests[2], (root,), 0, 3, RESIDENT, CREATE))
    commands += [world.denoise(request, (root,), 0, 1, RESIDENT, CREATE) for request in requests[:2]]
    from_root = broadcast(root) if len(ranks) > 1 else RESIDENT
    parts = [(1, 1), (1, 3), (3, 2)]
    commands.append(world.batch(requests, ranks, HandOver(from_root, from_root), parts, cfg_degree))
    commands += [world.decode(request, root, RESIDENT) for request in requests]
    outcomes = world.run(commands)
    assert all(isinstance(outcome, SegmentFinished) for outcome in outcomes), outcomes
    for request in requests:
        assert_same_image(world.image(request), reference(tiny_model, request, 64))


def test_previews_come_closer_to_the_image_step_by_step(world: Driver) -> None:
    previews, image = world.previews(make_request(128, 96, stream_progress=True, preview=True), ONE_TWO_FOUR_ONE)
    distances = [np.abs(preview.astype(int) - image).mean() for preview in previews]
    assert distances == sorted(distances, reverse=True)
    assert distances[0] < image.std()
    assert distances[3] == 0


def test_previews_of_large_images_are_small(world: Driver) -> None:
    previews, _ = world.previews(make_request(256, 128, stream_progress=True, preview=True), ONE_TWO_FOUR_ONE)
    assert [preview.shape for preview in previews] == 4 * [(128, 64, 3)]


def test_progress_comes_without_previews_unless_asked_for(world: Driver) -> None:
    previews, _ = world.previews(make_request(stream_progress=True), ONE_TWO_FOUR_ONE)
    assert previews == []


@pytest.mark.parametrize(("height", "width", "degrees"), [(144, 144, (1,)), (96, 144, (1, 2)), (128, 128, (1, 2, 4))])
def test_only_degrees_that_divide_the_image_tokens_are_offered_and_accepted(
    world: Driver, reference: Reference, tiny_model: Path, height: int, width: int, degrees: tuple[int, ...]
) -> None:
    executor = world.executor
    offered = usable_degrees(4, *executor.facts.shared_counts.values(), image_tokens(height, width))
    assert offered == degrees
    request = make_request(height, width)
    if 4 not in degrees:
        refused = world.run([world.encode(request, 0), world.denoise(request, ALL, 0, 4, broadcast(0), CREATE)])[1]
        assert isinstance(refused, SegmentFailed)
        assert not refused.retryable
        assert f"degree 4 does not divide {image_tokens(height, width)} image tokens" in refused.reason
    ours = world.generate(request, ((tuple(range(degrees[-1])), 4),))
    assert_same_image(ours, reference(tiny_model, request, 64))


def test_shorter_text_of_one_request_is_the_one_of_diffusers(
    world: Driver, reference: Reference, tiny_model: Path
) -> None:
    assert world.executor.facts.text_multiple == 8
    request = make_request(max_sequence_length=24)
    ours = world.generate(request, ONE_TWO_FOUR_ONE)
    assert_same_image(ours, reference(tiny_model, request, 24))
    assert (ours != reference(tiny_model, request, 64)).any()


@pytest.fixture(scope="module")
def world_without_guidance(tiny_model_without_guidance: Path) -> Iterator[Driver]:
    driver = Driver(ModelSettings(path=str(tiny_model_without_guidance)), ExecutorSettings(world_size=4))
    try:
        yield driver.start()
    finally:
        driver.stop()


def test_model_without_guidance_whose_text_four_ranks_cannot_share(
    world_without_guidance: Driver, reference: Reference, tiny_model_without_guidance: Path
) -> None:
    driver = world_without_guidance
    assert usable_degrees(4, *driver.executor.facts.shared_counts.values()) == (1, 2)
    request = make_request()
    refused = driver.run([driver.encode(request, 0), driver.denoise(request, ALL, 0, 4, broadcast(0), CREATE)])[1]
    assert isinstance(refused, SegmentFailed)
    assert not refused.retryable
    assert "degree 4 does not divide 34 text tokens" in refused.reason
    ours = driver.generate(request, (((0,), 1), ((0, 1), 1), ((2, 3), 2)))
    assert_same_image(ours, reference(tiny_model_without_guidance, request, 34))


def test_placement_without_a_group_is_refused(world: Driver) -> None:
    request = make_request()
    refused = world.run([world.encode(request, 1), world.denoise(request, (1, 2), 0, 4, broadcast(1), CREATE)])[1]
    assert isinstance(refused, SegmentFailed)
    assert "no group of ranks (1, 2)" in refused.reason
    world.executor.release(request.request_id)

"""A dead, stuck or failing rank costs one segment of its own requests, and nothing of any other."""

import os
import resource
import signal
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.integration.executor.conftest import Reference
from tests.integration.executor.driver import CREATE, RESIDENT, Driver, broadcast, host, make_request
from tests.integration.executor.served_by_engine import ServedByEngine
from tests.integration.executor.test_parity import ALL, assert_same_image
from tetriserve_backend.domain import Request, RequestFailedError
from tetriserve_backend.engine.events import SegmentFailed, SegmentFinished, WorkerLost, WorkerReady
from tetriserve_backend.engine.executor_port import StepProgress
from tetriserve_backend.engine.request_listener import Answer

NEVER_FITS = 2**70
"""A seed that no generator takes: the work itself raises, on every rank of the segment."""

OVERFLOWS = 1e39
"""A guidance scale that no float32 holds: the forward pass itself raises, whoever shares it."""


def wait_for_step(world: Driver, step_index: int) -> None:
    while True:
        event = world.next_event()
        if isinstance(event, StepProgress) and event.step_index >= step_index:
            return


def first_half(world: Driver, request: Request, ranks: tuple[int, ...], steps: int) -> None:
    lead = ranks[0]
    commands = [world.encode(request, lead), world.denoise(request, ranks, 0, steps, broadcast(lead), CREATE)]
    assert all(isinstance(outcome, SegmentFinished) for outcome in world.run(commands))


def test_killed_rank_costs_its_request_one_segment_and_others_nothing(
    world: Driver, reference: Reference, tiny_model: Path
) -> None:
    struck = make_request(256, 256, num_steps=12, seed=3, stream_progress=True)
    spared = make_request(256, 256, num_steps=12, seed=4)
    first_half(world, struck, (0, 1), 2)
    first_half(world, spared, (2, 3), 2)
    hit = world.send(world.denoise(struck, (0, 1), 2, 10, RESIDENT, RESIDENT))
    behind = world.send(world.decode(struck, 2, host(2)))
    other = world.send(world.denoise(spared, (2, 3), 2, 6, RESIDENT, RESIDENT))
    wait_for_step(world, 3)
    os.kill(world.executor.worker_pids()[1], signal.SIGKILL)

    lost = world.wait_for(WorkerLost)[-1]
    assert lost == WorkerLost(1, "killed by signal 9")
    failed = world.outcomes([hit, behind])
    assert all(isinstance(outcome, SegmentFailed) and outcome.retryable for outcome in failed)
    # The other group has not noticed, and goes on without a new world.
    assert isinstance(world.outcomes([other])[0], SegmentFinished)

    world.reform()
    resumed = [
        world.denoise(struck, (0, 1), 2, 10, host(0), host(0)),
        world.denoise(spared, (2, 3), 8, 4, RESIDENT, RESIDENT),
        world.decode(struck, 1, RESIDENT),
        world.decode(spared, 3, RESIDENT),
    ]
    assert all(isinstance(outcome, SegmentFinished) for outcome in world.run(resumed))
    for request in (struck, spared):
        assert_same_image(world.image(request), reference(tiny_model, request, 64))


def test_work_that_raises_fails_only_its_own_segment(world: Driver, reference: Reference, tiny_model: Path) -> None:
    spared = make_request(seed=5)
    broken = make_request(seed=NEVER_FITS)
    beside = [world.send(command) for command in world.whole(spared, (((2, 3), 4),), encode_on=2, decode_on=2)]
    encode, failing = world.run([world.encode(broken, 0), world.denoise(broken, (0, 1), 0, 4, broadcast(0), CREATE)])
    assert isinstance(encode, SegmentFinished)
    assert isinstance(failing, SegmentFailed)
    assert not failing.retryable
    assert "Overflow" in failing.reason
    # The group that it ran on serves the next request at once.
    next_one = make_request(seed=6)
    assert_same_image(world.generate(next_one, (((0, 1), 2), (ALL, 2))), reference(tiny_model, next_one, 64))
    assert all(isinstance(outcome, SegmentFinished) for outcome in world.outcomes(beside))
    assert_same_image(world.image(spared), reference(tiny_model, spared, 64))
    world.executor.release(broken.request_id)


@pytest.mark.parametrize("ranks", [(0,), (2, 3)])
def test_forward_pass_that_raises_costs_only_the_guilty_member_of_its_batch(
    world: Driver, reference: Reference, tiny_model: Path, ranks: tuple[int, ...]
) -> None:
    guilty = make_request(seed=9, guidance_scale=OVERFLOWS)
    neighbours = [make_request(seed=seed, num_steps=6) for seed in (10, 11)]
    engine = ServedByEngine(world, ranks)
    ends = engine.serve(neighbours, later=[guilty])
    error = ends.pop(guilty.request_id)
    assert isinstance(error, RequestFailedError), error
    assert "overflow" in str(error)
    # It joins a batch on its way, and is found out alone.
    one, other = (request.request_id for request in neighbours)
    assert engine.denoised[:2] == [(one, other), (one, other, guilty.request_id)]
    assert sorted(engine.denoised[2:]) == sorted([(one,), (other,)] * 2 + [(guilty.request_id,)])
    for request in neighbours:
        answer = ends.pop(request.request_id)
        assert isinstance(answer, Answer), answer
        assert_same_image(answer.pixels, reference(tiny_model, request, 64))


def test_rank_that_runs_out_of_memory_frees_the_ones_that_wait_for_it(
    world: Driver, reference: Reference, tiny_model: Path
) -> None:
    request = make_request(768, 768, num_steps=4)
    encode = world.run([world.encode(request, 0)])[0]
    assert isinstance(encode, SegmentFinished)
    pids = world.executor.worker_pids()
    pid = pids[1]
    _, hard = resource.prlimit(pid, resource.RLIMIT_AS)
    resource.prlimit(pid, resource.RLIMIT_AS, (psutil.Process(pid).memory_info().vms + (1 << 20), hard))
    try:
        failed = world.run([world.denoise(request, (0, 1), 0, 4, broadcast(0), CREATE)])[0]
    finally:
        resource.prlimit(pid, resource.RLIMIT_AS, (hard, hard))
    assert isinstance(failed, SegmentFailed)
    assert not failed.retryable, failed
    assert "memory" in failed.reason
    small = make_request()
    assert_same_image(world.generate(small, (((0, 1), 4),)), reference(tiny_model, small, 64))
    # Neither rank had to be killed to free the other.
    assert world.executor.worker_pids() == pids
    world.executor.release(request.request_id)


def test_stuck_rank_is_killed_and_its_request_goes_on(world: Driver, reference: Reference, tiny_model: Path) -> None:
    request = make_request(seed=8, num_steps=6)
    first_half(world, request, (2, 3), 2)
    os.kill(world.executor.worker_pids()[3], signal.SIGSTOP)
    stuck = world.send(world.denoise(request, (2, 3), 2, 4, RESIDENT, RESIDENT))
    failed = world.outcomes([stuck])[0]
    assert isinstance(failed, SegmentFailed)
    assert failed.retryable
    world.reform()
    rest = [world.denoise(request, (0, 1), 2, 4, host(0), host(0)), world.decode(request, 0, RESIDENT)]
    assert all(isinstance(outcome, SegmentFinished) for outcome in world.run(rest))
    assert_same_image(world.image(request), reference(tiny_model, request, 64))


def test_rank_that_dies_before_it_hands_a_latent_over_frees_the_ones_that_wait_for_it(
    world: Driver, reference: Reference, tiny_model: Path
) -> None:
    request = make_request(seed=12)
    first_half(world, request, (0,), 2)
    dying, waiting = (world.executor.worker_pids()[rank] for rank in (0, 1))
    os.kill(dying, signal.SIGSTOP)
    handed_over = world.send(world.denoise(request, (0, 1), 2, 2, broadcast(0), broadcast(0)))
    behind = world.send(world.encode(make_request(seed=13), 1))
    os.kill(dying, signal.SIGKILL)
    failed, encoded = world.outcomes([handed_over, behind])
    assert isinstance(failed, SegmentFailed)
    assert failed.retryable
    assert isinstance(encoded, SegmentFinished), encoded
    assert world.executor.worker_pids()[1] == waiting
    world.reform()
    rest = [world.denoise(request, (0, 1), 2, 2, host(0), host(0)), world.decode(request, 1, RESIDENT)]
    assert all(isinstance(outcome, SegmentFinished) for outcome in world.run(rest))
    assert_same_image(world.image(request), reference(tiny_model, request, 64))


def test_rank_that_dies_while_groups_are_formed_leads_to_another_try(
    world: Driver, reference: Reference, tiny_model: Path
) -> None:
    os.kill(world.executor.worker_pids()[0], signal.SIGKILL)
    world.wait_for(WorkerReady)
    os.kill(world.executor.worker_pids()[2], signal.SIGSTOP)
    world.executor.reform_world()
    os.kill(world.executor.worker_pids()[2], signal.SIGKILL)
    world.wait_for(WorkerLost)
    world.reform()
    request = make_request()
    assert_same_image(world.generate(request, ((ALL, 4),)), reference(tiny_model, request, 64))


def test_all_ranks_with_their_forking_parent_come_back(world: Driver, reference: Reference, tiny_model: Path) -> None:
    nursery = psutil.Process(world.executor.worker_pids()[0]).parent()
    assert nursery is not None
    nursery.kill()
    for _ in ALL:
        world.wait_for(WorkerLost)
    world.reform()
    request = make_request()
    assert_same_image(world.generate(request, ((ALL, 4),)), reference(tiny_model, request, 64))


def test_command_that_is_wrong_about_tensors_is_reported_and_nothing_hangs(
    world: Driver, reference: Reference, tiny_model: Path
) -> None:
    request = make_request()
    first_half(world, request, (0, 1), 2)
    wrong_step, not_held, no_copy = (
        world.denoise(request, (0, 1), 3, 1, RESIDENT, RESIDENT),
        world.denoise(request, (2, 3), 2, 2, RESIDENT, RESIDENT),
        world.denoise(request, (2, 3), 3, 1, host(2), host(2)),
    )
    for command in (wrong_step, not_held, no_copy):
        failed = world.run([command])[0]
        assert isinstance(failed, SegmentFailed), failed
        assert failed.retryable == (command is not no_copy)
    rest = [world.denoise(request, (0, 1), 2, 2, host(0), host(0)), world.decode(request, 0, RESIDENT)]
    assert all(isinstance(outcome, SegmentFinished) for outcome in world.run(rest))
    assert_same_image(world.image(request), reference(tiny_model, request, 64))


@pytest.mark.filterwarnings("ignore:Pydantic serializer")
def test_request_that_cannot_be_written_or_read_costs_no_rank(
    world: Driver, reference: Reference, tiny_model: Path
) -> None:
    pids = world.executor.worker_pids()
    half_a_step, no_unicode = make_request(num_steps=2.5), make_request(prompt="\ud800")
    for request in (half_a_step, no_unicode):
        failed = world.run([world.encode(request, 0)])[0]
        assert isinstance(failed, SegmentFailed)
        assert not failed.retryable
    shared = world.run([world.denoise(half_a_step, (0, 1), 0, 1, CREATE, CREATE)])[0]
    assert isinstance(shared, SegmentFailed)
    assert not shared.retryable
    request = make_request()
    assert_same_image(world.generate(request, ((ALL, 4),)), reference(tiny_model, request, 64))
    assert world.executor.worker_pids() == pids


def test_stuck_rank_is_found_soon_and_stalls_only_its_own_request(
    world: Driver, reference: Reference, tiny_model: Path
) -> None:
    struck, spared = make_request(seed=8, num_steps=6), make_request(seed=9)
    first_half(world, struck, (3,), 2)
    stuck_rank = world.executor.worker_pids()[3]
    os.kill(stuck_rank, signal.SIGSTOP)
    stuck = world.send(replace(world.denoise(struck, (3,), 2, 4, RESIDENT, RESIDENT), expected_s=0.1))
    behind = world.send(world.decode(struck, 2, host(2)))
    # On the rank that keeps a place for the decode.
    ours = world.generate(spared, (((2,), 2), ((0, 1), 2)), encode_on=2, decode_on=2)
    # Nobody had to wait until the stuck rank was given up.
    assert not world.is_over(stuck)
    assert_same_image(ours, reference(tiny_model, spared, 64))
    assert all(isinstance(outcome, SegmentFailed) for outcome in world.outcomes([stuck, behind]))
    world.executor.release(struck.request_id)
    world.reform()


def test_request_that_ends_early_leaves_nothing_behind(world: Driver) -> None:
    request = make_request(num_steps=6)
    ids = [world.send(command) for command in world.whole(request, (((0,), 3), ((2,), 3)), decode_on=1)]
    world.executor.release(request.request_id)
    finished = [isinstance(outcome, SegmentFinished) for outcome in world.outcomes(ids)]
    assert finished == [True, True, False, False]
    assert request.request_id not in world.executor.ranks._store._tensors


def test_rank_that_hangs_while_groups_are_formed_is_replaced(
    world: Driver, reference: Reference, tiny_model: Path
) -> None:
    os.kill(world.executor.worker_pids()[1], signal.SIGKILL)
    world.wait_for(WorkerReady)
    os.kill(world.executor.worker_pids()[2], signal.SIGSTOP)
    world.reform()
    request = make_request()
    assert_same_image(world.generate(request, ((ALL, 4),)), reference(tiny_model, request, 64))


def test_segments_for_a_lost_rank_are_refused_until_the_world_is_whole(world: Driver) -> None:
    os.kill(world.executor.worker_pids()[0], signal.SIGKILL)
    world.wait_for(WorkerLost)
    refused = world.run([world.encode(make_request(), 0)])[0]
    assert isinstance(refused, SegmentFailed)
    assert refused.retryable
    world.reform()
    assert isinstance(world.run([world.encode(make_request(), 0)])[0], SegmentFinished)

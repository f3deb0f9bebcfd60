"""What a profile measures, and in which order."""

import pytest
from pydantic import ValidationError

from tetriserve_backend.domain import ConfigurationError, SegmentKind
from tetriserve_backend.latency_table.work import decode_work, encode_work, step_work
from tetriserve_profiling.schedule import Mode, list_work, visits
from tetriserve_profiling.settings import ProfileSettings
from tetriserve_profiling.work import ranks_of, work_from_dict, work_to_dict

SETTINGS = ProfileSettings(resolutions=((512, 512), (256, 256)), batches=(2, 1), repeats=10, rounds=4)


def two_ranks(tokens: int) -> list[Mode]:
    return [Mode(1), Mode(2)] if tokens % 2 == 0 else [Mode(1)]


def test_every_shape_batch_and_degree_is_listed_small_shapes_first():
    work = list_work(SETTINGS, two_ranks)
    assert work[0] == encode_work()
    assert work[1:6] == [
        step_work(256, 256, 1, 1), step_work(256, 256, 2, 1), step_work(256, 256, 1, 2), step_work(256, 256, 2, 2),
        decode_work(256, 256),
    ]  # fmt: skip
    assert len(work) == len(set(work)) == 11


def test_a_shape_is_measured_only_at_degrees_that_divide_its_tokens():
    settings = SETTINGS.model_copy(update={"resolutions": ((48, 48), (64, 64))})
    steps = [work for work in list_work(settings, two_ranks) if work.kind is SegmentKind.DENOISE]
    assert {work.sp for work in steps if work.height == 48} == {1}
    assert {work.sp for work in steps if work.height == 64} == {1, 2}


def test_split_guidance_counts_by_its_ranks():
    def guided(tokens: int) -> list[Mode]:
        return [Mode(1), Mode(2), Mode(1, cfg=2)]

    settings = SETTINGS.model_copy(update={"degrees": (2,), "batches": (1,)})
    steps = [work for work in list_work(settings, guided) if work.kind is SegmentKind.DENOISE and work.height == 256]
    assert steps == [step_work(256, 256, 1, 2), step_work(256, 256, 1, 1, 2)]
    assert all(ranks_of(work) == (0, 1) for work in steps)


def test_a_degree_at_which_nothing_can_run_is_refused_with_those_that_can():
    with pytest.raises(ConfigurationError, match=r"degrees: 3: .*allowed: 1, 2"):
        list_work(SETTINGS.model_copy(update={"degrees": (1, 3)}), two_ranks)


def test_batches_without_a_single_image_are_refused():
    with pytest.raises(ValidationError, match="1 must be among them"):
        ProfileSettings(resolutions=((256, 256),), batches=(2, 4))


def test_samples_of_an_entry_are_spread_over_the_rounds():
    work = list_work(SETTINGS, two_ranks)
    plan = list(visits(work, SETTINGS, {}))
    assert len(plan) == 4 * len(work)
    for one in work:
        assert [visit.target for visit in plan if visit.work == one] == [3, 5, 8, 10]
    for start in range(0, len(plan), len(work)):
        assert {visit.work for visit in plan[start : start + len(work)]} == set(work)


def test_every_visit_has_two_samples_however_few_there_are():
    few = SETTINGS.model_copy(update={"repeats": 5})
    assert [visit.target for visit in visits([encode_work(1)], few, {})] == [3, 5]


def test_every_other_round_goes_backwards_so_that_a_drift_favours_no_entry():
    work = list_work(SETTINGS, two_ranks)
    order = [visit.work for visit in visits(work, SETTINGS, {})]
    assert order[: len(work)] == work
    assert order[len(work) : 2 * len(work)] == work[::-1]


def test_what_has_its_samples_is_not_visited_again():
    work = list_work(SETTINGS, two_ranks)
    have = dict.fromkeys(work, 10) | {work[3]: 4}
    assert [(visit.work, visit.target) for visit in visits(work, SETTINGS, have)] == [
        (work[3], 5), (work[3], 8), (work[3], 10)
    ]  # fmt: skip


@pytest.mark.parametrize("work", [step_work(256, 512, 2, 4, 2), encode_work(4), decode_work(64, 32)])
def test_work_survives_a_round_trip(work):
    assert work_from_dict(work_to_dict(work)) == work

"""`tetriserve table show` and `diff` as a user calls them."""

import copy
from pathlib import Path

import pytest
from PIL import Image

from tests.unit.cli.small_tables import MOVE, changed, table, tetriserve, write
from tetriserve_backend.cli.table.comparison import compare
from tetriserve_backend.latency_table.document import parse_document

H100 = Path(__file__).parents[3] / "model_repository/denoise/latency_tables/flux1-dev-8xh100.latency.json"


def test_show_prints_every_time_and_draws_the_heat_map(tmp_path):
    output = tetriserve("table", "show", H100, "--heat-map", tmp_path / "new" / "heat.png").output
    assert "1188.8" in output and "159.4 (×7.46, 93%)" in output
    assert "decode 2048x2048" in output and "steps of 4 images" in output
    with Image.open(tmp_path / "new" / "heat.png") as picture:
        assert min(picture.size) > 400


def test_a_grid_with_holes_split_guidance_and_memory_is_shown(tmp_path):
    raw = changed((512, 2, 1))
    raw["step"].append({"height": 256, "width": 256, "batch": 1, "sp": 1, "cfg": 2, "seconds": 0.06})
    raw["step"][0]["memory_bytes"] = 3 * 2**29
    raw["encode"][0]["memory_bytes"], raw["decode"][1]["memory_bytes"] = 5 * 2**29, 7 * 2**29
    raw["hand_over"] = [{**MOVE, "to": [0, 1]}]
    file = write(tmp_path / "a.latency.json", raw)
    output = tetriserve("table", "show", file, "--heat-map", tmp_path / "heat.png").output
    assert "sp 1 × cfg 2" in output and "—" in output
    assert "100.0 (cv 1.0%; 1.5 GiB)" in output
    rows = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in output.splitlines() if "code" in line}
    assert rows == {
        "encode batch 1": "30.00 (cv 1.0%; 2.5 GiB)", "decode 256x256": "10.00", "decode 512x512": "40.00 (3.5 GiB)"
    }  # fmt: skip
    assert "hand-over 512x512 from [0] to [0, 1]: 1.000 ms, 0.200% of a step (3.000 ms between the segments)" in output
    assert "dearest hand-over from 512x512 on: 0.200% of a step (goal: at most 0.5%)" in output
    raw["hand_over"][0] |= {"height": 256, "width": 256, "share_of_step": 0.9}
    assert "goal" not in tetriserve("table", "show", write(tmp_path / "a.latency.json", raw)).output


def test_diff_lists_the_worst_first_and_fails_where_entries_disagree(tmp_path):
    first = write(tmp_path / "a.latency.json", table())
    other = table(device="e")
    other["step"][0]["seconds"] *= 2
    other["step"][3]["seconds"] /= 3
    other["step"][5]["seconds"] *= 1.03
    second = write(tmp_path / "b.latency.json", other)
    assert "11 of 11 entries agree; median ratio 1.000" in tetriserve("table", "diff", first, first).output
    output = tetriserve("table", "diff", first, second, status=1).output
    assert "device: d / e" in output
    assert "9 of 11 entries agree; median ratio 1.000, largest 3.000" in output
    rows = [line for line in output.splitlines() if "│ step" in line]
    assert "0.333" in rows[0] and "2.000" in rows[1] and "1.030" in rows[2]
    assert len([line for line in tetriserve("table", "diff", first, second, "--top", 2, status=1).output.splitlines()
                if "│ step" in line]) == 2  # fmt: skip
    tetriserve("table", "diff", first, second, "--tolerance", 2.5)
    tetriserve("table", "diff", first, tmp_path / "absent.json", status=2)


@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        # The shortest step takes 53.6 ms.
        ({"dispatch_seconds": 0.002 + 0.95 * 0.05 * 0.0536}, []),
        ({"dispatch_seconds": 0.002 + 1.1 * 0.05 * 0.0536}, ["dispatch of a segment"]),
        ({"dispatch_seconds": 30.0}, ["dispatch of a segment"]),
        ({"dispatch_seconds": 0.0}, []),
        # A step of 512² on one rank takes 0.5 s.
        ({"hand_over": [{**MOVE, "seconds": 0.0, "between_seconds": 0.02}]}, []),
        ({"hand_over": [{**MOVE, "seconds": 0.03}]}, ["hand-over 512x512 from [0] to [1]"]),
        ({"hand_over": [{**MOVE, "between_seconds": 3}]}, ["hand-over 512x512 from [0] to [1], between the segments"]),
    ],
)  # fmt: skip
def test_diff_compares_dispatch_and_hand_overs_by_what_they_make_of_a_step(tmp_path, changes, differing):
    first = write(tmp_path / "a.latency.json", table(hand_over=[MOVE]))
    second = write(tmp_path / "b.latency.json", table(**{"hand_over": [MOVE], **changes}))
    for ours, theirs in ((first, second), (second, first)):
        output = tetriserve("table", "diff", ours, theirs, status=1 if differing else 0).output
        assert f"{3 - len(differing)} of 3 overheads (dispatch, hand-overs) agree" in output
        assert "11 of 11 entries agree" in output
        assert [line.split("│")[1].strip() for line in output.splitlines() if "differs" in line] == differing
    tetriserve("table", "diff", first, second, "--tolerance", 600)


def test_an_overhead_is_compared_no_finer_than_the_step_behind_it():
    noisy = table(hand_over=[{**MOVE, "seconds": 0.1}])
    assert compare(parse_document(table(hand_over=[MOVE]), "a"), parse_document(noisy, "b")).disagreeing_overheads == 1
    noisy["step"][4]["cv"] = 0.06
    assert compare(parse_document(table(hand_over=[MOVE]), "a"), parse_document(noisy, "b")).disagreeing_overheads == 0


def test_diff_names_the_hand_overs_that_only_one_table_has(tmp_path):
    first = write(tmp_path / "a.latency.json", table())
    second = write(tmp_path / "b.latency.json", table(hand_over=[{**MOVE, "seconds": 3.0}]))
    output = tetriserve("table", "diff", first, second).output
    assert f"only in {second}: hand-over 512x512 from [0] to [1], hand-over 512x512 from [0] to [1], between" in output


def test_diff_tells_which_settings_differ(tmp_path):
    first = write(tmp_path / "a.latency.json", table(settings={"compile": False, "profile": {"sides": [[256, 256]]}}))
    changes = {"compile": True, "profile": {"sides": [[512, 512]]}, "pin_ranks": False}
    second = write(tmp_path / "b.latency.json", table(settings=changes, guided=True))
    lines = tetriserve("table", "diff", first, second).output.splitlines()
    assert lines[:4] == [
        "guided: not told / True", "settings.compile: False / True",
        "settings.profile.sides: [[256, 256]] / [[512, 512]]", "settings.pin_ranks: not told / False",
    ]  # fmt: skip


def test_show_tells_the_settings_and_what_is_absent(tmp_path):
    absent = [
        {"kind": "step", "height": 512, "width": 512, "batch": 4, "sp": 1, "cfg": 2, "reason": "out of memory: [no]"},
        {"kind": "decode", "height": 1024, "width": 1024, "reason": "killed"},
    ]
    raw = table(settings={"compile": True, "profile": {"sides": [[256, 256]]}}, absent=absent)
    output = tetriserve("table", "show", write(tmp_path / "a.latency.json", raw)).output
    assert "compile True, profile.sides [[256, 256]]" in output
    assert output.splitlines()[-2:] == [
        "absent: step 512x512 batch 4 sp 1 × cfg 2: out of memory: [no]", "absent: decode 1024x1024: killed"
    ]  # fmt: skip


def test_tables_with_nothing_in_common_do_not_agree(tmp_path):
    first = write(tmp_path / "a.latency.json", table())
    raw = {**table(), "step": [{"height": 1024, "width": 1024, "batch": 1, "sp": 1, "seconds": 1.0}]}
    raw.update(encode=[{"batch": 1, "seconds": 0.0}], decode=[{"height": 1024, "width": 1024, "seconds": 0.1}])
    second = write(tmp_path / "b.latency.json", raw)
    assert "0 of 0 entries agree" in tetriserve("table", "diff", first, second, status=1).output


def test_two_entries_may_differ_by_four_times_their_cv():
    other = changed((512, 1, 2), 0.267 * 1.3, cv=0.1)
    comparison = compare(parse_document(table(), "a"), parse_document(other, "b"))
    assert comparison.pairs[0].allowed == pytest.approx(0.4)
    assert comparison.disagreeing == 0


def test_entries_of_wild_samples_do_not_agree_at_any_distance():
    def of_cv(cv, seconds):
        return parse_document(changed((512, 1, 2), seconds, cv=cv), "t")

    apart = compare(of_cv(0.5, 0.2), of_cv(0.4, 0.32))
    assert apart.pairs[0].allowed == 0.5 and apart.disagreeing == 1
    assert compare(of_cv(0.5, 0.2), of_cv(0.4, 0.32), floor=0.7).disagreeing == 0
    assert compare(of_cv(0.5, 0.2), of_cv(0.4, 0.29)).disagreeing == 0


def test_what_only_one_table_has_is_named():
    fewer = copy.deepcopy(table())
    del fewer["step"][-1]
    comparison = compare(parse_document(table(), "a"), parse_document(fewer, "b"))
    assert comparison.only_first == ("step 512x512 batch 2 sp 2",) and comparison.only_second == ()

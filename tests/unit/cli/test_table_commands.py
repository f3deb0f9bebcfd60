"""`tetriserve table show`, `check` and `diff` as a user calls them."""

import copy
import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from tetriserve_backend.cli.app import app
from tetriserve_backend.cli.table.comparison import compare
from tetriserve_backend.cli.table.findings import Severity, expectation_of, find_all
from tetriserve_backend.latency_table.document import parse_document

H100 = Path(__file__).parents[3] / "model_repository/denoise/latency_tables/flux1-dev-8xh100.latency.json"


MOVE = {
    "height": 512, "width": 512, "from": [0], "to": [1], "seconds": 0.001, "share_of_step": 0.002,
    "between_seconds": 0.003, "samples": 5,
}  # fmt: skip


def table(*extra_steps, **changes):
    """Two resolutions, batches 1 and 2, degrees 1 and 2; nothing odd about it."""
    raw = {
        "schema": "tetriserve.latency_table/1",
        "model": "m",
        "device": "d",
        "world_size": 2,
        "dtype": "float32",
        "source": "measured",
        "step": [
            {"height": side, "width": side, "batch": batch, "sp": sp, "seconds": seconds * batch / sp**0.9, "cv": 0.01}
            for side, seconds in ((256, 0.1), (512, 0.5))
            for batch in (1, 2)
            for sp in (1, 2)
        ],
        "encode": [{"batch": 1, "seconds": 0.03, "cv": 0.01}],
        "decode": [
            {"height": 256, "width": 256, "seconds": 0.01},
            {"height": 512, "width": 512, "seconds": 0.04},
        ],
        "dispatch_seconds": 0.002,
        **changes,
    }
    raw["step"] += extra_steps
    return raw


def changed(key, seconds=None, **values):
    """A table whose step at (side, batch, sp) differs; without values it is missing."""
    raw = table()
    for entry in raw["step"]:
        if (entry["height"], entry["batch"], entry["sp"]) == key:
            entry.update({} if seconds is None else {"seconds": seconds}, **values)
            if seconds is None and not values:
                raw["step"].remove(entry)
                break
    return raw


def findings(raw, cv_limit=0.05):
    document = parse_document(raw, "t")
    return find_all(document, expectation_of(document), cv_limit)


def tetriserve(*arguments, status=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output
    return result


def write(path, raw):
    path.write_text(json.dumps(raw))
    return path


def test_a_sound_table_has_no_findings():
    assert findings(table()) == []


@pytest.mark.parametrize(
    ("raw", "severity", "where", "numbers"),
    [
        (changed((512, 1, 1), 0.08), Severity.ERROR, "step 512x512 batch 1 sp 1", "80 ms is less than 100 ms"),
        (changed((512, 2, 2), 0.1), Severity.ERROR, "step 512x512 batch 2 sp 2", "100 ms is less than 267.9 ms"),
        (changed((256, 2, 1), 0.3), Severity.WARNING, "step 256x256 batch 2 sp 1", "1.50 times 2 × 100 ms"),
        (changed((512, 1, 2), 0.2), Severity.WARNING, "step 512x512 batch 1 sp 2", "speed-up 2.50 on 2 times"),
        (changed((256, 1, 2), 0.12), Severity.WARNING, "step 256x256 batch 1 sp 2", "is slower (speed-up 0.83)"),
        (changed((256, 1, 2), cv=0.2), Severity.WARNING, "step 256x256 batch 1 sp 2", "cv 20.0% of 53.59 ms"),
        (changed((512, 1, 2)), Severity.ERROR, "step 512x512 batch 1 on 2 rank(s)", "missing; fix: profile it"),
        (changed((512, 2, 2)), Severity.WARNING, "step 512x512 batch 2 on 2 rank(s)", "such a batch is never run"),
        (changed((512, 1, 1)), Severity.ERROR, "step 512x512 batch 1 sp 1", "cannot run on one rank"),
        (table(world_size=4), Severity.WARNING, "4 rank(s)", "no entry at all"),
        (
            table(decode=[{"height": s, "width": s, "seconds": 10.24 / s} for s in (256, 512)]),
            Severity.ERROR, "decode 512x512", "20 ms is less than 40 ms",
        ),
        (
            table(hand_over=[{**MOVE, "share_of_step": 0.02}]),
            Severity.WARNING, "hand-over 512x512 from [0] to [1]", "2.00% of a step",
        ),
    ],
)  # fmt: skip
def test_what_is_odd_is_found_with_its_numbers(raw, severity, where, numbers):
    found = [finding for finding in findings(raw) if finding.where == where and numbers in finding.text]
    assert [finding.severity for finding in found] == [severity]


def test_differences_within_the_noise_are_not_findings():
    assert findings(changed((256, 1, 2), 0.104)) == []
    noisy = changed((512, 1, 2), 0.24, cv=0.04)
    assert findings(noisy) == []


def test_what_a_profile_found_not_to_fit_is_not_missing():
    raw = changed((512, 2, 1))
    raw["absent"] = [
        {"kind": "step", "height": 512, "width": 512, "batch": 2, "sp": 1, "cfg": 1, "reason": "out of memory"}
    ]
    (finding,) = findings(raw)
    assert finding.severity is Severity.WARNING and finding.text == "left out by the profile: out of memory"


def test_check_tells_errors_from_warnings_by_its_exit_status(tmp_path):
    sound = write(tmp_path / "a.latency.json", table())
    slow = write(tmp_path / "b.latency.json", changed((256, 1, 2), 0.106))
    falling = write(tmp_path / "c.latency.json", changed((512, 1, 1), 0.08))
    assert "0 error(s), 0 warning(s)" in tetriserve("table", "check", sound).output
    assert "warning: step 256x256 batch 1 sp 2" in tetriserve("table", "check", slow).output
    tetriserve("table", "check", "--strict", slow, status=1)
    output = tetriserve("table", "check", sound, falling, status=1).output
    assert f"{sound}: 0 error(s)" in output and "error: step 512x512 batch 1 sp 1" in output
    tetriserve("table", "check", write(tmp_path / "d.latency.json", {}), status=2)


def test_check_wants_what_the_options_name(tmp_path):
    sound = write(tmp_path / "a.latency.json", table())
    tetriserve("table", "check", sound, "--resolutions", "256x256,512x512", "--degrees", "1,2", "--batches", "1,2")
    output = tetriserve("table", "check", sound, "--resolutions", "1024x1024", "--degrees", "1,2", status=1).output
    assert "step 1024x1024 batch 1 on 2 rank(s): missing" in output
    tetriserve("table", "check", sound, "--resolutions", "large", status=2)
    tetriserve("table", "check", sound, "--degrees", "0", status=2)


def test_the_published_table_is_sound_but_for_slow_wide_degrees():
    output = tetriserve("table", "check", H100).output
    assert "step 256x256 batch 1 sp 2: 50 ms on 1 → 64.19 ms on 2: the wider degree is slower (speed-up 0.78)" in output


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


CONFIGURATION = """
model: {path: m, dtype: float32, device: cpu}
executor: {world_size: 2}
request: {height: 256, width: 256}
scheduler: {max_batch: 2}
"""


def check(tmp_path, raw, configuration, status, *options):
    """Findings of a table for a configuration."""
    file = write(tmp_path / "a.latency.json", raw)
    config = tmp_path / "server.yaml"
    config.write_text(configuration)
    output = tetriserve("table", "check", file, "--config", config, *options, status=status).output
    return output.splitlines()[:-1]


def test_a_table_of_all_that_is_configured_is_sound(tmp_path):
    assert check(tmp_path, table(), CONFIGURATION, 0) == []


def test_each_shape_that_is_configured_and_absent_is_reported(tmp_path):
    found = check(
        tmp_path, table(), CONFIGURATION.replace("max_batch: 2", "max_batch: 4")
        + "quick_resolutions: [256x256, 512x512, 384x384]\n", 1,
    )  # fmt: skip
    absent = "missing; fix: profile it, or leave it out of the configuration"
    for ranks in (1, 2):
        assert f"error: step 384x384 batch 1 on {ranks} rank(s): {absent}" in found
        for batch in (2, 4):
            assert (
                f"warning: step 384x384 batch {batch} on {ranks} rank(s): missing: such a batch is never run" in found
            )
        assert f"warning: step 512x512 batch 4 on {ranks} rank(s): missing: such a batch is never run" in found
    assert "warning: decode 384x384: missing: its time is interpolated or refused" in found
    assert not any("256x256 batch 1" in line or "256x256 batch 2" in line for line in found)
    # Options say otherwise.
    wanted = ("--resolutions", "256x256", "--batches", "1,2")
    assert check(tmp_path, table(), CONFIGURATION + "quick_resolutions: [384x384]\n", 0, *wanted) == []


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        ("path: m", "path: other", "warning: model: the table has m, the configuration other"),
        ("dtype: float32", "dtype: bfloat16", "warning: dtype: the table has float32, the configuration bfloat16"),
        ("world_size: 2", "world_size: 4", "warning: world_size: the table has 2, the configuration 4"),
        ("world_size: 2", "threads_per_rank: 2", "warning: settings: measured with other threads_per_rank (1, here 2)"),
        ("height: 256", "height: 1024", "error: request 1024x256: a request that names no size is refused; allowed: "),
        ("max_batch: 2", "{max_batch: 2, policy: fixed-sp4}", "error: policy fixed-sp4: "),
    ],
)
def test_what_does_not_go_with_the_configuration_is_told(tmp_path, old, new, finding):
    configuration = CONFIGURATION.replace("{" + old + "}" if new.startswith("{") else old, new)
    raw = table(settings={"threads_per_rank": 1})
    if "height" in old:
        raw["step"] = [entry for entry in raw["step"] if entry["height"] == 256]
        raw["decode"] = raw["decode"][:1]
    found = check(tmp_path, raw, configuration, int(finding.startswith("error")))
    assert [line for line in found if line.startswith(finding)], found


def test_of_several_models_the_one_counts_that_the_table_is_of(tmp_path):
    models = "models: [{name: a, model: {path: m}}, {name: b, model: {path: n}, quick_resolutions: [1024x1024]}]\n"
    assert check(tmp_path, table(), CONFIGURATION + models, 0) == []
    assert any("step 1024x1024" in line for line in check(tmp_path, table(model="n"), CONFIGURATION + models, 1))
    found = check(tmp_path, table(model="o"), CONFIGURATION + models, 0)
    assert [line for line in found if line.startswith("warning: model: the table has o, the configuration m and n")]


def test_a_wrong_configuration_is_no_finding(tmp_path):
    sound = write(tmp_path / "a.latency.json", table())
    tetriserve("table", "check", sound, "--config", tmp_path / "absent.yaml", status=2)

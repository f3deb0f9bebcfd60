"""`tetriserve table check` as a user calls it, and the rules behind it."""

import json
from pathlib import Path

import pytest

from tests.unit.cli.small_tables import MOVE, changed, table, tetriserve, write
from tetriserve_backend.cli.table.check import find_all
from tetriserve_backend.cli.table.expectation import expectation_of
from tetriserve_backend.cli.table.findings import Severity
from tetriserve_backend.domain import LatencyTableError
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_backend.latency_table.document import parse_document

TABLES = Path(__file__).parents[3] / "model_repository/denoise/latency_tables"
H100 = TABLES / "flux1-dev-8xh100.latency.json"
SD3 = TABLES / "sd3-medium-8xh100-analytic.latency.json"


def findings(raw, cv_limit=0.05):
    document = parse_document(raw, "t")
    return find_all(document, expectation_of(document), cv_limit)


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
        (changed((256, 1, 2), 0.02), Severity.ERROR, "step 256x256 batch 1 sp 2", "speed-up 5.00 on 2 times"),
        (changed((256, 1, 2), 1.1), Severity.ERROR, "step 256x256 batch 1 sp 2", "is slower (speed-up 0.091)"),
        (changed((512, 1, 2)), Severity.ERROR, "step 512x512 batch 1 sp 2", "missing; fix: profile it"),
        (changed((512, 2, 2)), Severity.WARNING, "step 512x512 batch 2 sp 2", "such a batch is never run"),
        (changed((512, 1, 1)), Severity.ERROR, "step 512x512 batch 1 sp 1", "must be able to run on one rank"),
        (table(world_size=4), Severity.WARNING, "sp 4 on 4 rank(s)", "no entry at all: no step is shared so; right"),
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


def test_a_profile_that_found_one_rank_too_small_makes_no_table_to_serve_with():
    raw = changed((512, 1, 1))
    raw["absent"] = [
        {"kind": "step", "height": 512, "width": 512, "batch": 1, "sp": 1, "cfg": 1, "reason": "too large"}
    ]
    assert [finding.severity for finding in findings(raw) if "too large: each resolution must" in finding.text] == [
        Severity.ERROR
    ]


def test_many_small_falls_are_a_large_one():
    sides = range(256, 256 + 8 * 64, 64)
    raw = table(
        step=[
            {"height": side, "width": side, "batch": batch, "sp": 1, "seconds": batch * 0.955**index, "cv": 0.01}
            for index, side in enumerate(sides) for batch in (1, 2)
        ],
        decode=[{"height": side, "width": side, "seconds": 0.955**index} for index, side in enumerate(sides)],
        world_size=1,
    )  # fmt: skip
    found = findings(raw)
    # The first two differ by no more than noise.
    assert [finding.where for finding in found] == [
        *(f"step {side}x{side} batch {batch} sp 1" for batch in (1, 2) for side in sides[2:]),
        *(f"decode {side}x{side}" for side in sides[2:]),
    ]  # fmt: skip
    assert all("of step 256x256 batch" in finding.text for finding in found[:6])


def test_many_images_are_compared_with_all_fewer():
    steps = [{"height": 256, "width": 256, "batch": b, "sp": 1, "seconds": 0.955**b, "cv": 0.0} for b in (1, 2, 3)]
    found = findings(table(step=steps, decode=table()["decode"][:1], world_size=1))
    assert [finding.where for finding in found] == ["step 256x256 batch 3 sp 1"]


def test_each_degree_is_compared_with_one_rank_and_all_narrower_ones():
    seconds = {1: 1.0, 2: 1.04, 4: 1.08, 8: 0.4, 16: 0.14}
    steps = [{"height": 256, "width": 256, "batch": 1, "sp": sp, "seconds": s} for sp, s in seconds.items()]
    found = findings(table(step=steps, decode=table()["decode"][:1], world_size=16))
    assert [(finding.where, finding.text.partition(": ")[0]) for finding in found] == [
        ("step 256x256 batch 1 sp 4", "1000 ms on 1 → 1080 ms on 4"),
        ("step 256x256 batch 1 sp 8", "1080 ms on 4 → 400 ms on 8"),
        ("step 256x256 batch 1 sp 16", "1080 ms on 4 → 140 ms on 16"),
    ]


def with_splits(factor=1.0):
    """A guided table; at each size and batch two ranks take `factor` times as long with the guidance split."""
    shared = [entry for entry in table()["step"] if entry["sp"] == 2]
    split = [{**entry, "sp": 1, "cfg": 2, "seconds": factor * entry["seconds"]} for entry in shared]
    return table(*split, guided=True)


@pytest.mark.parametrize(
    ("factor", "severity", "told"),
    [
        (0.8, Severity.WARNING, "so more than they can give"),
        (
            0.001,
            Severity.ERROR,
            "speed-up 1866.07 on 2 times the ranks, so more than they can give; fix: profile again",
        ),
        (2.0, Severity.WARNING, "the wider degree is slower (speed-up 0.93)"),
        (1000.0, Severity.ERROR, "the wider degree is slower (speed-up 0.0019); fix: profile again"),
    ],
)
def test_guidance_that_is_split_is_compared_with_one_rank(factor, severity, told):
    assert findings(with_splits()) == []
    found = findings(with_splits(factor))
    assert {finding.where for finding in found} == {
        f"step {side}x{side} batch {batch} sp 1 × cfg 2" for side in (256, 512) for batch in (1, 2)
    }
    assert all(finding.severity is severity and finding.text.endswith(told) for finding in found)


@pytest.mark.parametrize("factor", [0.001, 1000.0])
def test_absurd_times_of_split_guidance_make_a_shipped_table_fail(tmp_path, factor):
    raw = json.loads(SD3.read_text())
    tetriserve("table", "check", SD3)
    for entry in raw["step"]:
        entry["seconds"] *= factor if entry.get("cfg") == 2 else 1.0
    output = tetriserve("table", "check", write(tmp_path / "a.latency.json", raw), status=1).output
    assert "error: step 1024x1024 batch 1 sp 1 × cfg 2: " in output


def test_a_way_to_share_a_step_that_one_size_lacks_is_missing_there():
    raw = with_splits()
    raw["step"] = [e for e in raw["step"] if e["height"] == 256 or e.get("cfg", 1) == 1]
    found = {finding.where: finding for finding in findings(raw)}
    assert found["step 512x512 batch 1 sp 1 × cfg 2"].severity is Severity.ERROR
    assert found["step 512x512 batch 2 sp 1 × cfg 2"].severity is Severity.WARNING
    assert len(found) == 2


def test_small_images_have_no_goal_for_hand_overs():
    steps = table()["step"] + [
        {"height": 496, "width": 512, "batch": 1, "sp": sp, "seconds": 0.5 / sp} for sp in (1, 2)
    ]
    small = {**MOVE, "height": 496, "share_of_step": 0.2}
    raw = table(step=steps, decode=[*table()["decode"], {"height": 496, "width": 512, "seconds": 0.04}])
    raw["step"] = [entry for entry in steps if entry["batch"] == 1]
    assert findings(raw | {"hand_over": [small]}) == []
    (finding,) = findings(raw | {"hand_over": [small, {**MOVE, "share_of_step": 0.006}]})
    assert finding.where == "hand-over 512x512 from [0] to [1]"


def test_check_tells_errors_from_warnings_by_its_exit_status(tmp_path):
    sound = write(tmp_path / "a.latency.json", table())
    slow = write(tmp_path / "b.latency.json", changed((256, 1, 2), 0.106))
    falling = write(tmp_path / "c.latency.json", changed((512, 1, 1), 0.08))
    assert "0 error(s), 0 warning(s)" in tetriserve("table", "check", sound).output
    assert "warning: step 256x256 batch 1 sp 2" in tetriserve("table", "check", slow).output
    tetriserve("table", "check", "--strict", slow, status=1)
    output = tetriserve("table", "check", sound, falling, status=1).output
    assert f"{sound}: 0 error(s)" in output and "error: step 512x512 batch 1 sp 1" in output


def test_a_table_that_servers_refuse_has_an_error_like_any_other(tmp_path):
    raw = table()
    raw["step"] = [entry for entry in raw["step"] if entry["sp"] > 1]
    several_ranks_only = write(tmp_path / "a.latency.json", raw)
    with pytest.raises(LatencyTableError, match="expected an entry with sp = 1"):
        LatencyTable.load(several_ranks_only).check_one_rank()
    output = tetriserve("table", "check", several_ranks_only, status=1).output
    assert "error: step 256x256 batch 1 sp 1: missing: each resolution must be able to run on one rank" in output


def test_a_file_that_cannot_be_read_does_not_keep_the_others_from_being_checked(tmp_path):
    broken = write(tmp_path / "a.latency.json", {})
    falling = write(tmp_path / "b.latency.json", changed((512, 1, 1), 0.08))
    sound = write(tmp_path / "c.latency.json", table())
    output = tetriserve("table", "check", broken, tmp_path / "none.latency.json", falling, sound, status=2).output
    assert f"latency table {broken}: schema: missing" in output and "none.latency.json: cannot be read" in output
    assert "error: step 512x512 batch 1 sp 1" in output and f"{sound}: 0 error(s)" in output
    tetriserve("table", "check", falling, sound, status=1)
    tetriserve("table", "check", sound, broken, status=2)


def test_check_wants_what_the_options_name(tmp_path):
    sound = write(tmp_path / "a.latency.json", table())
    tetriserve("table", "check", sound, "--resolutions", "256x256,512x512", "--degrees", "1,2", "--batches", "1,2")
    output = tetriserve("table", "check", sound, "--resolutions", "1024x1024", "--degrees", "1,2", status=1).output
    assert "step 1024x1024 batch 1 sp 2: missing" in output
    tetriserve("table", "check", sound, "--resolutions", "large", status=2)
    tetriserve("table", "check", sound, "--degrees", "0", status=2)


def test_the_published_table_is_sound_but_for_slow_wide_degrees():
    output = tetriserve("table", "check", H100).output
    assert "step 256x256 batch 1 sp 2: 50 ms on 1 → 64.19 ms on 2: the wider degree is slower (speed-up 0.78)" in output


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
    assert f"error: step 384x384 batch 1 sp 2: {absent}" in found
    assert any(line.startswith("error: step 384x384 batch 1 sp 1: missing: each resolution must") for line in found)
    for sp in (1, 2):
        for batch in (2, 4):
            assert f"warning: step 384x384 batch {batch} sp {sp}: missing: such a batch is never run" in found
        assert f"warning: step 512x512 batch 4 sp {sp}: missing: such a batch is never run" in found
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


def narrow(source, degrees=(1, 2), **changes):
    """A shipped table with these degrees only."""
    raw = json.loads(source.read_text()) | changes
    return raw | {"step": [entry for entry in raw["step"] if entry["sp"] * entry.get("cfg", 1) in degrees]}


def missing_modes(tmp_path, raw, world_size, status, more="", *options):
    """Severity by what a configuration of so many ranks misses altogether."""
    configuration = f"model: {{path: {raw['model']}}}\nexecutor: {{world_size: {world_size}}}\n{more}"
    found = check(tmp_path, raw, configuration, status, *options)
    return {where: severity for severity, where, text in (line.split(": ", 2) for line in found) if "no entry" in text}


def test_a_configuration_wants_every_degree_at_which_the_model_can_run(tmp_path):
    error = {"sp 4 on 4 rank(s)": "error", "sp 8 on 8 rank(s)": "error"}
    assert missing_modes(tmp_path, narrow(H100), 8, 1) == error
    # What the table tells counts more than what is known of its model.
    assert missing_modes(tmp_path, narrow(H100, shared_counts={"attention heads": 12}), 8, 1) == {
        "sp 4 on 4 rank(s)": "error"
    }
    # It was measured with other text than is usual.
    assert missing_modes(tmp_path, narrow(H100, text_tokens=77), 8, 0) == {}
    assert missing_modes(tmp_path, narrow(H100, (1, 2, 4, 8)), 16, 0) == {}, "16 does not divide 24 heads"


def test_a_model_that_is_not_known_is_warned_of(tmp_path):
    unknown = {"sp 4 on 4 rank(s)": "warning", "sp 8 on 8 rank(s)": "warning"}
    assert missing_modes(tmp_path, narrow(H100, model="org/else"), 8, 0) == unknown
    assert missing_modes(tmp_path, narrow(H100, (1, 8), model="org/else"), 16, 1) == {
        "sp 2 on 2 rank(s)": "error", "sp 4 on 4 rank(s)": "error", "sp 16 on 16 rank(s)": "warning"
    }, "what runs on eight ranks has heads for two and four"  # fmt: skip


def test_the_heads_of_a_model_in_a_folder_are_read_from_its_configuration(tmp_path):
    folder = tmp_path / "model"
    (folder / "transformer").mkdir(parents=True)
    sizes = {"in_channels": 64, "num_layers": 2, "num_single_layers": 4, "attention_head_dim": 64}
    sizes |= {"num_attention_heads": 4, "joint_attention_dim": 512, "pooled_projection_dim": 64}
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps({"_class_name": "FluxTransformer2DModel", **sizes}))
    raw = narrow(H100, model=str(folder))
    assert missing_modes(tmp_path, raw, 8, 1) == {"sp 4 on 4 rank(s)": "error"}
    # The configured model is the one that a server loads.
    other = check(tmp_path, narrow(H100), f"model: {{path: {folder}}}\nexecutor: {{world_size: 8}}\n", 1)
    assert [line.partition(": no entry")[0] for line in other if "no entry" in line] == ["error: sp 4 on 4 rank(s)"]
    config.write_text("{}")
    assert set(missing_modes(tmp_path, raw, 8, 0).values()) == {"warning"}


def test_a_guided_model_may_share_its_passes_among_more_ranks_than_its_heads_allow(tmp_path):
    assert missing_modes(tmp_path, narrow(SD3, (1, 2, 4, 8)), 16, 1) == {"sp 8 × cfg 2 on 16 rank(s)": "error"}
    plain = json.loads(SD3.read_text())
    plain["step"] = [entry for entry in plain["step"] if entry.get("cfg", 1) == 1]
    assert missing_modes(tmp_path, plain, 2, 1) == {"sp 1 × cfg 2 on 2 rank(s)": "error"}


@pytest.mark.parametrize(
    ("more", "missing"),
    [
        ("scheduler: {policy: fixed-sp2}", []),
        ("scheduler: {policy: fixed-sp4}", ["sp 4 on 4 rank(s)"]),
        ("scheduler: {policy: tetris, pod_size: 4}", ["sp 4 on 4 rank(s)"]),
        ("scheduler: {policy: rssp, pod_size: 4}", ["sp 4 on 4 rank(s)", "sp 8 on 8 rank(s)"]),
    ],
)
def test_only_degrees_that_the_policy_may_take_are_wanted(tmp_path, more, missing):
    assert list(missing_modes(tmp_path, narrow(H100), 8, int(bool(missing)), more)) == missing


def test_degrees_that_are_named_count_instead_of_the_configured_ones(tmp_path):
    assert missing_modes(tmp_path, narrow(H100), 8, 0, "", "--degrees", "1,2") == {}
    assert missing_modes(tmp_path, narrow(H100), 8, 1, "", "--degrees", "1,4") == {"sp 4 on 4 rank(s)": "error"}
    unknown = narrow(H100, model="org/else")
    assert missing_modes(tmp_path, unknown, 8, 1, "", "--degrees", "1,4") == {"sp 4 on 4 rank(s)": "error"}


def test_a_degree_that_is_named_and_impossible_is_an_error(tmp_path):
    output = tetriserve("table", "check", H100, "--degrees", "1,16", status=1).output
    divided = "24 attention heads, 512 text tokens, the image tokens of a resolution"
    assert f"error: 16 rank(s): no step can be shared so, as that must divide {divided}; fix: " in output
    tetriserve("table", "check", SD3, "--degrees", "1,2")


def test_a_degree_that_divides_the_tokens_of_no_resolution_is_not_missing(tmp_path):
    odd = {"height": 528, "width": 528, "batch": 1}
    raw = table(step=[{**odd, "sp": 1, "seconds": 0.1}], decode=[{"height": 528, "width": 528, "seconds": 0.1}])
    assert findings(raw) == []
    assert check(tmp_path, raw, CONFIGURATION.replace("256", "528").replace("max_batch: 2", "max_batch: 1"), 0) == []
    assert (
        "image tokens" in tetriserve("table", "check", tmp_path / "a.latency.json", "--degrees", "2", status=1).output
    )


def test_without_a_configuration_degrees_that_the_table_has_nowhere_are_warned_of(tmp_path):
    lines = tetriserve("table", "check", write(tmp_path / "a.latency.json", narrow(H100))).output.splitlines()
    for sp in (4, 8):
        told = "no entry at all, though the model can run at it: no step is shared so"
        assert f"warning: sp {sp} on {sp} rank(s): {told}" in lines
    quiet = narrow(H100, shared_counts={"attention heads": 2})
    assert "no entry" not in tetriserve("table", "check", write(tmp_path / "a.latency.json", quiet)).output

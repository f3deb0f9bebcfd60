"""What `tetriserve profile` makes of its options, and by which exit status it tells."""

import errno
import json
import signal
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.unit.profiling.fake_executor import FakeExecutor
from tetriserve_backend.cli.app import app
from tetriserve_backend.cli.profile_target import table_name
from tetriserve_backend.cli.stop_signals import stop_signals
from tetriserve_backend.domain import SegmentKind
from tetriserve_backend.executor.config import ModelSettings
from tetriserve_backend.executor.model_executor import ModelExecutor
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_profiling.conditions import Conditions
from tetriserve_profiling.partial_file import partial_path
from tetriserve_profiling.record import Identity

TWO_MODELS = "models=[{name: a, model: {path: org/a}}, {name: b, model: {path: org/b}, quick_resolutions: ['128x128']}]"


@pytest.mark.parametrize(
    ("conditions", "name"),
    [
        (Conditions(), "FLUX.1_dev-8xNVIDIA_H100-bfloat16-t512"),
        (Conditions("flash_3", compile=True), "FLUX.1_dev-8xNVIDIA_H100-bfloat16-t512-flash_3-compiled"),
        (Conditions(threads_per_rank=4, pin_ranks=True), "FLUX.1_dev-8xNVIDIA_H100-bfloat16-t512-4threads-pinned"),
    ],
)
def test_tables_of_different_conditions_have_different_names(conditions: Conditions, name: str) -> None:
    identity = Identity("org/FLUX.1-dev", "b", "NVIDIA H100", 8, "bfloat16", 512, {}, {})
    assert table_name(identity, conditions) == f"{name}.latency.json"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--resolutions", "256"], "--resolutions 256: '256' is not a resolution; allowed: HEIGHTxWIDTH"),
        (["--resolutions", "250x256"], "both sides must be positive multiples of 16"),
        (["--batches", "2,x"], "--batches 2,x: allowed: numbers of at least 1"),
        (["--degrees", "0"], "--degrees 0: allowed: numbers of at least 1"),
        (["--set", "model.dtyp=float16"], "dtyp"),
        (["-c", "absent.yaml"], "absent.yaml"),
        (["-o", "/tmp/"], "--out /tmp: is a folder; allowed: a file, such as /tmp/new.latency.json"),
        (["-o", "/proc/x.latency.json"], "--out /proc/x.latency.json: cannot be written: "),
        (["-o", "/dev/null/x.latency.json"], "--out /dev/null/x.latency.json: cannot be written: Not a directory"),
        (["--batches", "2,4"], "batches: 1 must be among them"),
        (["--set", TWO_MODELS], "--model: there are several models; allowed: a, b"),
        (["--set", TWO_MODELS, "--model", "demo-flux"], "--model: demo-flux is none of the models; allowed: a, b"),
    ],
)
def test_wrong_options_are_named_and_start_nothing(
    options: list[str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(ModelExecutor, "alone")
    result = CliRunner().invoke(app, ["profile", *options])
    assert result.exit_code == 2
    assert told in result.output


def profile(executor: FakeExecutor, table: Path, *more: str) -> tuple[int, str]:
    """Exit status and output of a profile of these ranks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelExecutor, "alone", lambda model, settings: executor)
        options = ["--resolutions", "256x256,512x512", "--batches", "1", "--repeats", "2", "--out", str(table)]
        result = CliRunner().invoke(app, ["profile", *options, *more])
    return result.exit_code, result.output


def test_the_table_tells_under_which_conditions_it_was_measured(tmp_path: Path) -> None:
    status, output = profile(FakeExecutor(), tmp_path / "a.latency.json")
    assert status == 0, output
    settings = LatencyTable.load(tmp_path / "a.latency.json").settings
    assert Conditions().to_dict().items() <= settings.items()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "cannot be taken up"),
        (
            json.dumps({
                "schema": "tetriserve.latency_profile/1", "identity": {}, "record": {"entries": [], "absent": []}
            }),
            "measured with other",
        ),
    ],
)  # fmt: skip
def test_what_was_kept_of_another_profile_is_a_wrong_file(tmp_path: Path, content: str, told: str) -> None:
    table = tmp_path / "a.latency.json"
    partial_path(table).write_text(content)
    status, output = profile(FakeExecutor(), table)
    assert status == 2 and told in output and "--fresh" in output
    assert partial_path(table).read_text() == content


def test_without_out_the_model_repository_must_take_new_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ModelExecutor, "alone")
    monkeypatch.setattr("tetriserve_backend.cli.profile_command.find_model_repository", lambda: Path("/proc"))
    result = CliRunner().invoke(app, ["profile"])
    assert result.exit_code == 2
    assert "model repository: /proc/denoise/latency_tables: cannot be written: " in result.output
    assert "with --out" in result.output


def test_a_disk_that_is_full_at_the_end_costs_no_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "new" / "a.latency.json"

    def save(self: LatencyTable, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", f"{path}.1.tmp")

    with monkeypatch.context() as patch:
        patch.setattr(LatencyTable, "save", save)
        status, output = profile(FakeExecutor(), table)
    assert status == 2 and f"table {table}: cannot be written: No space left on device; fix: " in output
    assert partial_path(table).exists()
    executor = FakeExecutor()
    assert profile(executor, table)[0] == 0
    assert not [command for command in executor.commands if command.segment.kind is SegmentKind.DECODE]


def test_ranks_on_different_devices_are_no_wrong_file(tmp_path: Path) -> None:
    executor = FakeExecutor()
    executor.device_names[1] = "Another GPU"
    status, output = profile(executor, tmp_path / "a.latency.json")
    assert status == 1 and "different devices" in output


def test_a_table_that_has_more_is_replaced_by_force_only(tmp_path: Path) -> None:
    table = tmp_path / "a.latency.json"
    assert profile(FakeExecutor(), table)[0] == 0
    before = table.read_text()
    executor = FakeExecutor()
    status, output = profile(executor, table, "--resolutions", "256x256", "--repeats", "3")
    assert status == 2 and executor.commands == []
    lost = "step 512x512 batch 1 sp 1, step 512x512 batch 1 sp 2, decode 512x512"
    assert f"table {table}: exists and has what would not be measured: {lost}; fix: " in output
    assert "--out, or replace it with --force" in output
    assert table.read_text() == before and not partial_path(table).exists()
    assert profile(FakeExecutor(), table, "--resolutions", "256x256", "--force")[0] == 0
    assert LatencyTable.load(table).resolutions == ((256, 256),)


def test_a_table_is_seen_by_whatever_path_it_is_named(tmp_path: Path) -> None:
    table = tmp_path / "a.latency.json"
    assert profile(FakeExecutor(), table)[0] == 0
    before = table.read_text()
    status, output = profile(FakeExecutor(), tmp_path / "no" / ".." / table.name, "--resolutions", "256x256")
    assert status == 2 and f"table {table}: exists and has what would not be measured" in output
    assert [path.name for path in tmp_path.iterdir()] == [table.name] and table.read_text() == before


def test_a_table_is_replaced_by_one_that_has_all_of_it(tmp_path: Path) -> None:
    table = tmp_path / "a.latency.json"
    # An encode of several prompts, as older tables have it, is no loss.
    assert profile(FakeExecutor(), table)[0] == 0
    raw = json.loads(table.read_text())
    raw["encode"].append({"batch": 2, "seconds": 0.1})
    table.write_text(json.dumps(raw))
    status, output = profile(FakeExecutor(), table, "--batches", "1,2")
    assert status == 0, output
    assert len(LatencyTable.load(table).to_dict()["step"]) == 8


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"text_tokens": 128}, "exists and is of other text_tokens (128, here 64)"),
        ({"model": "org/other"}, "exists and is of other model ('org/other', here 'org/model')"),
        ({"source": "published"}, "exists and is of other source ('published', here 'measured')"),
        ({"settings": {"compile": True}}, "exists and is of other compile (True, here False)"),
        ({"step": []}, "exists and is no latency table"),
    ],
)
def test_a_table_of_something_else_is_replaced_by_force_only(
    tmp_path: Path, change: dict[str, object], told: str
) -> None:
    table = tmp_path / "a.latency.json"
    assert profile(FakeExecutor(), table)[0] == 0
    table.write_text(json.dumps(json.loads(table.read_text()) | change))
    status, output = profile(FakeExecutor(), table)
    assert status == 2 and told in output
    assert profile(FakeExecutor(), table, "--force")[0] == 0


@pytest.mark.parametrize(
    ("models", "options", "path", "resolutions"),
    [
        ("models=[{name: a, model: {path: org/a}, quick_resolutions: ['256x256']}]", (), "org/a", [[256, 256]]),
        (TWO_MODELS, ("--model", "b"), "org/b", [[128, 128]]),
        (TWO_MODELS, ("--model", "b", "--resolutions", "64x64"), "org/b", [[64, 64]]),
        ("executor.world_size=2", ("--model", "org/c", "--resolutions", "64x64"), "org/c", [[64, 64]]),
    ],
)
def test_a_configured_model_is_measured_as_it_is_served(
    models: str,
    options: tuple[str, ...],
    path: str,
    resolutions: list[list[int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen: list[ModelSettings] = []

    def alone(model: ModelSettings, settings: object) -> FakeExecutor:
        chosen.append(model)
        return FakeExecutor()

    monkeypatch.setattr(ModelExecutor, "alone", alone)
    table = tmp_path / "a.latency.json"
    command = ["profile", "--set", models, *options, "--batches", "1", "--repeats", "2", "-o", str(table)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert [model.path for model in chosen] == [path]
    assert LatencyTable.load(table).settings["profile"]["resolutions"] == resolutions


def test_where_nothing_fits_the_reasons_are_told_rather_than_a_broken_table(tmp_path: Path) -> None:
    table = tmp_path / "a.latency.json"
    executor = FakeExecutor(fault=lambda c: "out of memory" if c.segment.kind is SegmentKind.DENOISE else None)
    status, output = profile(executor, table)
    assert status == 1 and "step 256x256 batch 1 sp 1: out of memory: out of memory" in output
    assert not table.exists()


def test_signals_that_the_caller_has_ignored_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert stop_signals() == [signal.SIGINT, signal.SIGTERM]
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        assert stop_signals() == [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    finally:
        signal.signal(signal.SIGHUP, before)

"""The command line of `tetriserve serve`, as far as it goes without starting a server."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tetriserve_backend.cli.app import app
from tetriserve_backend.cli.serve import _settings


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--set", "engine.speed=1"), "engine.speed: unknown setting; allowed: engine."),
        (("--set", "engine"), "allowed: key=value"),
        (("--config", "nowhere.yaml"), "nowhere.yaml"),
        (("--world-size", "0"), "executor.world_size"),
        (("--", "--http-port=9"), "--http-port: set by tetriserve itself"),
        (("--http-port", "99999"), "--http-port"),
        (("--policy", "nonsense"), "unknown policy 'nonsense'; allowed: tetris, tetriserve, rssp"),
        (("--policy", "fixed-sp3"), "k a power of two"),
        (("--policy", "fixed-sp4", "--world-size", "2"), "k a power of two up to 2"),
        (("--set", "latency_table=nowhere.latency.json"), "nowhere.latency.json: cannot be read"),
        (("--set", "model.pace_table=no.latency.json"), "no.latency.json: cannot be read"),
        (("--set", "request.num_inference_steps=500"), "max_num_inference_steps = 200"),
        (
            ("--set", "supervisor.open_apis=[cuda]"),
            "'shared-memory', 'trace', 'logging' or 'model-repository', got 'cuda'",
        ),
        (("--model", "a=demo-flux", "--model", "a=demo-sd3"), "models: two are named 'a'"),
        (("--model", "a/b=demo-flux"), "models.0.name"),
        (
            ("--set", "models=[{name: a, modle: {path: demo-flux}}]"),
            "models.0.modle: unknown setting; allowed: models.0",
        ),
        (("--log-file", "/proc/nowhere/log"), "--log-file /proc/nowhere/log: "),
        (("--state-file", "/proc/nowhere/state"), "--state-file /proc/nowhere/state: "),
        (("--timeline", "/proc/nowhere/timeline"), "timeline /proc/nowhere/timeline: "),
    ],
)
def test_wrong_settings_end_with_status_2_and_a_reason(
    arguments: tuple[str, ...], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is not refused must not start a server either.
    monkeypatch.delattr("tetriserve_backend.cli.serve.Supervisor")
    ports = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")
    finished = CliRunner().invoke(app, ["serve", *ports, *arguments])
    assert finished.exit_code == 2, finished.stderr
    assert expected in finished.stderr


def test_option_wins_over_set_over_file(tmp_path: Path) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text("scheduler: {policy: rssp, step_granularity: 2}\nexecutor: {world_size: 1}\ntimeline: t.json\n")
    settings = _settings(
        config, ["scheduler.policy=fixed-sp1", "executor.world_size=4"], {"executor.world_size": 8, "timeline": None}
    )
    assert (settings.executor.world_size, settings.scheduler.policy) == (8, "fixed-sp1")
    assert settings.scheduler.step_granularity == 2
    # The server runs in a folder of its own: paths must not depend on it.
    assert settings.timeline == str(Path("t.json").absolute())

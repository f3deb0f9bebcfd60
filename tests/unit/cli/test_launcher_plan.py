"""What the launcher decides before anything runs."""

import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from tetriserve_backend.cli.launcher import installation
from tetriserve_backend.cli.launcher.command import check_extra_arguments, server_command
from tetriserve_backend.cli.launcher.environment import server_environment
from tetriserve_backend.cli.launcher.installation import (
    TritonInstallation,
    find_installation,
    find_libpython_dir,
)
from tetriserve_backend.cli.launcher.plan import LaunchPlan
from tetriserve_backend.cli.launcher.ports import Endpoints, claim_endpoints
from tetriserve_backend.cli.launcher.processes import Run
from tetriserve_backend.cli.launcher.repository import (
    MODELS,
    SERVED_PREFIX,
    find_model_repository,
    read_config,
    render_repository,
)
from tetriserve_backend.domain import ConfigurationError
from tetriserve_backend.executor.demo_models import DEMO_MODELS
from tetriserve_backend.triton_adapter.settings import CLOSABLE_APIS, ServerSettings
from tetriserve_backend.triton_adapter.settings_sources import (
    build_settings,
    from_parameters,
    served_model_from_parameters,
)

ENDPOINTS = Endpoints("127.0.0.1", 1, 2, 3)


def parameters_of(path: Path) -> dict[str, str]:
    return {name: value.string_value for name, value in read_config(path).parameters.items()}


def test_settings_reach_the_models_that_read_them(tmp_path: Path) -> None:
    settings = build_settings({"scheduler": {"policy": "rssp"}, "request": {"height": 64}, "timeline": "/t.json"})
    render_repository(find_model_repository(), tmp_path / "repository", settings)
    denoise = from_parameters(parameters_of(tmp_path / "repository" / "denoise" / "config.pbtxt"))
    assert (denoise.scheduler.policy, denoise.timeline) == ("rssp", "/t.json")
    preprocess = from_parameters(parameters_of(tmp_path / "repository" / "preprocess" / "config.pbtxt"))
    assert (preprocess.request.height, preprocess.scheduler) == (64, ServerSettings().scheduler)
    assert all((tmp_path / "repository" / name / "1").is_dir() for name in MODELS)


def test_each_served_model_stands_in_the_repository_under_its_name(tmp_path: Path) -> None:
    settings = build_settings(
        {
            "model": {"device": "cpu"},
            "quick_resolutions": ["64x64"],
            "models": [{"name": "a", "model": {"path": "demo-flux"}}, {"model": {"path": "/models/SD 3.5"}}],
        }
    )
    repository = tmp_path / "repository"
    render_repository(find_model_repository(), repository, settings)
    served = sorted(path.name for path in repository.glob(f"{SERVED_PREFIX}*"))
    assert served == ["denoise_SD_3.5", "denoise_a"]
    for name, path in zip(served, ("/models/SD 3.5", "demo-flux"), strict=True):
        config = repository / name / "config.pbtxt"
        told = served_model_from_parameters(parameters_of(config))
        assert (read_config(config).name, f"denoise_{told.name}") == (name, name)
        assert (told.model.path, told.model.device, told.quick_resolutions) == (path, "cpu", ("64x64",))
    engine = from_parameters(parameters_of(repository / "denoise" / "config.pbtxt"))
    assert engine.model.device == "cpu"


def test_checked_in_models_are_the_embedded_ones() -> None:
    repository = find_model_repository()
    for path in repository.glob(f"{SERVED_PREFIX}*"):
        told = served_model_from_parameters(parameters_of(path / "config.pbtxt")).named()
        assert read_config(path / "config.pbtxt").name == path.name == f"denoise_{told.name}"
        assert told.model.path in DEMO_MODELS


def test_checked_in_configurations_are_what_clients_rely_on() -> None:
    repository = find_model_repository()
    configs = {name: read_config(repository / name / "config.pbtxt") for name in MODELS}
    assert {name: config.name for name, config in configs.items()} == {name: name for name in MODELS}
    public = [(tensor.name, tensor.data_type, list(tensor.dims)) for tensor in configs["tetriserve"].input]
    front = [(tensor.name, tensor.data_type, list(tensor.dims)) for tensor in configs["tetriserve_infer"].input]
    checked = [(tensor.name, tensor.data_type, list(tensor.dims)) for tensor in configs["preprocess"].input]
    assert public == front == checked
    assert [tensor.name for tensor in configs["tetriserve"].output] == ["image", "step", "metadata"]
    assert configs["denoise"].model_transaction_policy.decoupled
    assert not configs["tetriserve_infer"].model_transaction_policy.decoupled
    # More instances of postprocess would mix up the order of one request's responses.
    assert [group.count for group in configs["postprocess"].instance_group] == [1]


def test_repository_without_our_models_is_refused(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with pytest.raises(ConfigurationError, match="denoise"):
        render_repository(tmp_path / "source", tmp_path / "target", ServerSettings())


def test_broken_configuration_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.pbtxt").write_text("name: 'x' nonsense: 1")
    with pytest.raises(ConfigurationError, match=r"config\.pbtxt"):
        read_config(tmp_path / "config.pbtxt")


def environment_upon(base: dict[str, str]) -> dict[str, str]:
    return server_environment(
        base,
        library_dirs=[Path("/py/lib"), Path("/wheel/libs")],
        python_bin=Path("/venv/bin"),
        import_path=["/src", "/src/profiling"],
        run_id="tetriserve-1",
        control_token="t",
        temporary_dir=Path("/run/tmp"),
    )


def test_environment_puts_this_python_and_its_library_first() -> None:
    environment = environment_upon({"PATH": "/usr/bin", "LD_LIBRARY_PATH": "/opt/lib", "HOME": "/h"})
    assert environment["PATH"] == "/venv/bin:/usr/bin"
    assert environment["LD_LIBRARY_PATH"] == "/py/lib:/wheel/libs:/opt/lib"
    assert environment["PYTHONPATH"] == environment["TETRISERVE_IMPORT_PATH"] == "/src:/src/profiling"
    assert (environment["TETRISERVE_RUN_ID"], environment["HOME"]) == ("tetriserve-1", "/h")
    assert environment["TMPDIR"] == "/run/tmp"


def test_heap_arenas_are_few_unless_the_operator_says_otherwise() -> None:
    assert environment_upon({})["MALLOC_ARENA_MAX"] == "2"
    assert environment_upon({"MALLOC_ARENA_MAX": "8"})["MALLOC_ARENA_MAX"] == "8"


def command_with(
    explicit_models: Sequence[str] = (), closed_apis: Sequence[str] = (), extra: Sequence[str] = ()
) -> list[str]:
    return server_command(
        Path("/triton"), backend_dir=Path("/b"), repository=Path("/r"), endpoints=ENDPOINTS, shm_prefix="p-",
        exit_timeout_s=2.4, closed_apis=closed_apis, secret="s", explicit_models=explicit_models, extra=extra,
    )  # fmt: skip


def test_operators_arguments_come_last_on_the_command_line() -> None:
    command = command_with(extra=["--log-verbose=1"])
    assert (command[0], command[-1]) == ("/triton", "--log-verbose=1")
    assert "--backend-config=python,shm-region-prefix-name=p-" in command
    assert not any(argument.startswith("--load-model") for argument in command)
    assert {"--http-port=1", "--grpc-port=2", "--metrics-port=3", "--http-address=127.0.0.1"} <= set(command)


def test_in_explicit_mode_only_the_named_models_are_loaded_at_the_start() -> None:
    command = command_with(explicit_models=("tetriserve", "denoise_a"))
    assert {"--model-control-mode=explicit", "--load-model=tetriserve", "--load-model=denoise_a"} <= set(command)


def restrictions(command: Sequence[str]) -> list[str]:
    return [argument for argument in command if "-restricted-" in argument]


def test_closed_apis_are_closed_on_both_endpoints() -> None:
    assert restrictions(command_with()) == []
    assert restrictions(command_with(closed_apis=("trace", "logging"))) == [
        "--http-restricted-api=trace,logging:supervisor.open_apis=s",
        "--grpc-restricted-protocol=trace,logging:supervisor.open_apis=s",
    ]


@pytest.mark.parametrize(
    "own", [["--http-restricted-api=trace,health:k=v"], ["--http-restricted-api", "trace,health:k=v"]]
)
def test_api_that_an_operator_restricts_is_named_once(own: list[str]) -> None:
    ours = restrictions(command_with(closed_apis=("trace", "logging"), extra=own))[:2]
    assert ours == [
        "--http-restricted-api=logging:supervisor.open_apis=s",
        "--grpc-restricted-protocol=trace,logging:supervisor.open_apis=s",
    ]


def restrictions_of_two_starts(
    settings: ServerSettings, endpoints: Endpoints = ENDPOINTS, *, is_explicit: bool = False
) -> list[list[str]]:
    plan = LaunchPlan(
        run=Run("r", Path("/run")), installation=TritonInstallation(Path("/triton"), ()), settings=settings,
        endpoints=endpoints, environment={}, control_token="", is_explicit=is_explicit, import_path=(),
        extra_arguments=(), log_path=None,
    )  # fmt: skip
    return [restrictions(plan.make_server(index)._command) for index in range(2)]


@pytest.mark.parametrize(
    ("host", "is_explicit", "opened", "is_closed"),
    [
        ("0.0.0.0", True, [], True),
        ("10.0.0.7", True, [], True),
        ("10.0.0.7", True, ["model-repository"], False),
        ("10.0.0.7", False, [], False),
        ("127.0.0.1", True, [], False),
        ("::1", True, [], False),
        ("localhost", True, [], False),
    ],
)
def test_models_cannot_be_loaded_from_other_machines_unless_that_is_asked_for(
    host: str, is_explicit: bool, opened: list[str], is_closed: bool
) -> None:
    settings = build_settings({"supervisor": {"open_apis": opened}})
    options, _ = restrictions_of_two_starts(settings, Endpoints(host, 1, 2, 3), is_explicit=is_explicit)
    assert len(options) == 2 and all(("model-repository" in option) is is_closed for option in options)


def test_every_start_closes_what_the_settings_do_not_open_by_another_secret() -> None:
    commands = restrictions_of_two_starts
    first, second = commands(ServerSettings())
    assert all("=shared-memory,trace,logging:" in option for option in first)
    assert len(first) == 2 and not set(first) & set(second)
    opened, _ = commands(build_settings({"supervisor": {"open_apis": ["shared-memory"]}}))
    assert all("=trace,logging:" in option for option in opened)
    assert commands(build_settings({"supervisor": {"open_apis": list(CLOSABLE_APIS)}})) == [[], []]


@pytest.mark.parametrize("argument", ["--http-port=1", "--model-repository=/x", "--allow-http=false"])
def test_arguments_that_the_supervisor_counts_on_are_refused(argument: str) -> None:
    with pytest.raises(ConfigurationError, match=argument.partition("=")[0]):
        check_extra_arguments(["--log-verbose=1", argument])


def test_free_ports_are_found_and_a_taken_one_is_named() -> None:
    endpoints = claim_endpoints("127.0.0.1", 0, 0, 0)
    assert len({endpoints.http_port, endpoints.grpc_port, endpoints.metrics_port} - {0}) == 3
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf"--grpc-port {port}.*allowed: a free port"):
            claim_endpoints("127.0.0.1", 0, port, 0)
    with pytest.raises(ConfigurationError, match="--http-port"):
        claim_endpoints("no.such.host.invalid", 0, 0, 0)


def test_server_for_everybody_is_reached_by_loopback() -> None:
    assert Endpoints("0.0.0.0", 1, 2, 3).http_url == "http://127.0.0.1:1"
    assert Endpoints("::", 1, 2, 3).grpc_url == "[::1]:2"


def make_triton(root: Path, minor: int) -> Path:
    backend = root / "backends" / "python"
    backend.mkdir(parents=True)
    (root / "bin").mkdir()
    server = root / "bin" / "tritonserver"
    server.write_text("")
    server.chmod(0o755)
    (backend / "libtriton_python.so").write_bytes(b"")
    (backend / "triton_python_backend_utils.py").write_text("")
    (backend / "triton_python_backend_stub").write_bytes(b"\x7fELF..." + f"libpython3.{minor}.so.1.0".encode() + b"\0")
    return server


def test_tritonserver_on_path_is_taken_when_it_is_for_this_python(tmp_path: Path) -> None:
    server = make_triton(tmp_path, sys.version_info.minor)
    found = find_installation(search_path=str(server.parent))
    assert found.server == server.resolve()
    assert found.library_dirs == ()


def test_tritonserver_for_another_python_gives_way_to_the_wheel(tmp_path: Path) -> None:
    server = make_triton(tmp_path, 8)
    found = find_installation(search_path=str(server.parent))
    assert found.server != server
    assert found.library_dirs and all(file.exists() for file in found.backend_files)


def test_no_tritonserver_at_all_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = make_triton(tmp_path, 8)
    monkeypatch.setattr(installation.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"for Python 3\.8.*nvidia-pytriton is not installed"):
        find_installation(search_path=str(server.parent))


def test_unsupported_python_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "sys", SimpleNamespace(version_info=(3, 13, 0)))
    with pytest.raises(ConfigurationError, match=r"allowed: 3\.10, 3\.11, 3\.12"):
        find_installation()


def test_libpython_is_found_or_missed_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    assert any(find_libpython_dir().glob(f"libpython3.{sys.version_info.minor}*.so*"))
    monkeypatch.setattr(installation, "_libpython_name", lambda: "libpython3.99.so.1.0")
    with pytest.raises(ConfigurationError, match=r"libpython3\.99.*--enable-shared"):
        find_libpython_dir()

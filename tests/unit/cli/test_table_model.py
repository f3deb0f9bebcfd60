"""`tetriserve table model` as a user calls it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tetriserve_backend.cli.app import app
from tetriserve_backend.latency_table import LatencyTable

TABLES = Path(__file__).parents[3] / "model_repository/denoise/latency_tables"
SHIPPED = {
    "flux1-dev-8xh100-analytic": ("FLUX.1-dev", "H100", 8),
    "flux1-dev-4xa40-analytic": ("FLUX.1-dev", "A40", 4),
    "sd3-medium-8xh100-analytic": ("SD3-medium", "H100", 8),
    "sd3-medium-4xa40-analytic": ("SD3-medium", "A40", 4),
}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TETRISERVE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def table_model(*options, model="FLUX.1-dev", gpu="H100", gpus=8, out="a.latency.json", status=0):
    command = ["table", "model", "--model", model, "--gpu", gpu, "--gpus", gpus, "--out", out, *options]
    result = CliRunner().invoke(app, [str(part) for part in command])
    assert result.exit_code == status, result.output
    return result


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_tables_are_what_the_command_writes(name):
    model, gpu, gpus = SHIPPED[name]
    table_model(model=model, gpu=gpu, gpus=gpus)
    shipped = LatencyTable.load(TABLES / f"{name}.latency.json")
    assert LatencyTable.load("a.latency.json").to_dict() == shipped.to_dict()
    assert shipped.source == "analytic"


def test_a_guided_model_has_entries_with_its_guidance_split():
    table_model(model="SD3-medium", gpus=4)
    table = LatencyTable.load("a.latency.json")
    shapes = {(entry["sp"], entry.get("cfg", 1)) for entry in table.to_dict()["step"]}
    assert shapes == {(1, 1), (2, 1), (4, 1), (1, 2), (2, 2)}
    assert table.cfg_degree(2048, 2048, 2) == 2


def test_resolutions_batches_and_software_are_as_asked():
    table_model("--resolutions", "512x768,1024x1024", "--batches", "1,3", "--software", "compile", gpus=3)
    document = LatencyTable.load("a.latency.json").to_dict()
    assert {(e["height"], e["width"], e["batch"], e["sp"]) for e in document["step"]} == {
        (height, width, batch, sp) for height, width in ((512, 768), (1024, 1024)) for batch in (1, 3) for sp in (1, 2)
    }
    assert document["software"] == {"kernels": "compile"}
    assert [entry["batch"] for entry in document["encode"]] == [1]


def test_degrees_divide_the_text_of_flux():
    table_model("--text-tokens", 77)
    assert {entry["sp"] for entry in LatencyTable.load("a.latency.json").to_dict()["step"]} == {1}


def test_a_table_is_written_for_a_config_of_ones_own():
    sizes = {"in_channels": 64, "num_layers": 2, "num_single_layers": 4, "attention_head_dim": 64}
    sizes |= {"num_attention_heads": 8, "joint_attention_dim": 512, "pooled_projection_dim": 64}
    Path("config.json").write_text(json.dumps({"_class_name": "FluxTransformer2DModel", **sizes}))
    table_model("--name", "org/small", model="config.json")
    assert LatencyTable.load("a.latency.json").model == "org/small"


@pytest.mark.parametrize(
    ("options", "wrong", "message"),
    [
        ((), {"model": "SDXL"}, "allowed: FLUX.1-dev, SD3-medium"),
        ((), {"gpu": "H300"}, "allowed: A100, A40"),
        (("--software", "fast"), {}, "allowed: eager, compile"),
        (("--resolutions", "100x100"), {}, "--resolutions"),
        (("--batches", "2"), {}, "at least one entry with batch = 1"),
        ((), {"out": "/proc/no.latency.json"}, "--out /proc/no.latency.json: cannot be written: "),
        ((), {"out": "/proc/self/maps/no.latency.json"}, "--out /proc/"),
        ((), {"out": "/tmp/"}, "--out /tmp: is a folder; allowed: a file, such as /tmp/new.latency.json"),
    ],
)
def test_wrong_options_are_refused_with_what_is_allowed(options, wrong, message):
    result = table_model(*options, **wrong, status=2)
    assert message in result.output
    assert not Path("a.latency.json").exists()


def test_gpus_that_no_link_joins_share_no_step():
    table_model(model="SD3-medium", gpus=16)
    table = LatencyTable.load("a.latency.json")
    assert table.world_size == 16 and table.degrees(1024, 1024) == (1, 2, 4, 8)


def test_a_gpu_that_is_too_small_is_refused():
    Path("own.yaml").write_text(
        "{name: small, device: Small, bf16_dense_tflops: 100, memory_gb: 24, memory_bandwidth_gb_per_s: 900}"
    )
    assert "its weights take 33.7 GB, and one small has 24 GB" in table_model(gpu="own.yaml", gpus=1, status=2).output


@pytest.mark.parametrize("out", ["a.latency.json", "not-there/../a.latency.json", "a-link.latency.json"])
def test_a_table_that_is_not_analytic_is_replaced_by_force_only(out):
    raw = json.loads((TABLES / "flux1-dev-8xh100.latency.json").read_text())
    Path("a.latency.json").write_text(json.dumps(raw))
    Path("a-link.latency.json").symlink_to("a.latency.json")
    assert "exists and is published" in table_model(out=out, status=2).output
    assert not Path("not-there").exists()
    assert json.loads(Path("a.latency.json").read_text()) == raw
    table_model("--force")
    table_model()
    assert LatencyTable.load("a.latency.json").source == "analytic"

"""What `tetriserve profile` makes of its options, before it starts any rank."""

import pytest
from typer.testing import CliRunner

from tetriserve_backend.cli.app import app
from tetriserve_backend.cli.profile_command import table_name
from tetriserve_profiling.conditions import Conditions
from tetriserve_profiling.record import Identity


@pytest.mark.parametrize(
    ("conditions", "name"),
    [
        (Conditions(), "FLUX.1_dev-8xNVIDIA_H100-bfloat16"),
        (Conditions("flash_3", compile=True), "FLUX.1_dev-8xNVIDIA_H100-bfloat16-flash_3-compiled"),
        (Conditions(threads_per_rank=4, pin_ranks=True), "FLUX.1_dev-8xNVIDIA_H100-bfloat16-4threads-pinned"),
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
    ],
)
def test_wrong_options_are_named_and_start_nothing(options: list[str], told: str) -> None:
    result = CliRunner().invoke(app, ["profile", *options])
    assert result.exit_code == 2
    assert told in result.output

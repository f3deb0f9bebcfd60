"""A small latency table, what may be changed about it, and the command line as a user calls it."""

import json

from typer.testing import CliRunner

from tetriserve_backend.cli.app import app

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


def tetriserve(*arguments, status=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output
    return result


def write(path, raw):
    path.write_text(json.dumps(raw))
    return path

"""The other side of the comparison: diffusers' own pipeline in a process of its own, with the rank's settings."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any


class BareDiffusers:
    """Runs `pipe(...)` on one image at a time in a child process that stays up; use with `with`.

    Args:
        model: a diffusers-format FLUX.1 directory.
        max_sequence_length: text tokens, as the server's.
    """

    def __init__(self, model: Path, max_sequence_length: int) -> None:
        command = [sys.executable, "-m", __name__, str(model), str(max_sequence_length)]
        quiet = {"TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, env=os.environ | quiet, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> "BareDiffusers":
        self._ask({"height": 256, "width": 256, "num_inference_steps": 1, "prompt": "warm up", "seed": 0})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait()

    def seconds(self, request: dict[str, Any]) -> float:
        """How long one image takes from prompt to PNG bytes."""
        return float(self._ask(request)["seconds"])

    def _ask(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the bare diffusers process ended; its error is above")
        return json.loads(line)


def _serve_lines(model: Path, max_sequence_length: int) -> None:
    import diffusers  # noqa: PLC0415 - the parent process needs none of this
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    from tetriserve_backend.triton_adapter.image_encoding import encode_image  # noqa: PLC0415
    from tetriserve_backend.triton_adapter.image_format import ImageFormat  # noqa: PLC0415

    torch.set_num_threads(1)
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    pipe = diffusers.FluxPipeline.from_pretrained(model, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    for line in sys.stdin:
        request = json.loads(line)
        start_s = time.monotonic()
        with torch.inference_mode():
            image = pipe(
                prompt=request["prompt"],
                height=request["height"],
                width=request["width"],
                num_inference_steps=request["num_inference_steps"],
                guidance_scale=3.5,
                max_sequence_length=max_sequence_length,
                generator=torch.Generator("cpu").manual_seed(request["seed"]),
                output_type="np",
            ).images[0]
        pixels = (image * 255).round().astype("uint8")
        encode_image(pixels, ImageFormat.PNG)
        print(json.dumps({"seconds": time.monotonic() - start_s}), flush=True)


if __name__ == "__main__":
    _serve_lines(Path(sys.argv[1]), int(sys.argv[2]))

"""Load for locust: images of mixed models, resolutions and deadlines, and the part of them that came on time.

    locust -f clients/locustfile.py --host http://localhost:8000

Models, resolutions and deadlines come from the server's own latency tables. The on-time ratio is printed at the end and
shown live under the tab "On time" of locust's page.
"""

import base64
import io
import json
import random
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flask import Blueprint, jsonify, render_template
from locust import FastHttpUser, between, events, task
from locust.env import Environment
from locust.exception import StopUser
from PIL import Image, UnidentifiedImageError

HTTP_OK = 200
ONE_IMAGE, SEVERAL_IMAGES = "tetriserve", "tetriserve_infer"
"""Triton's `generate` takes one response: for several images the model that puts them into one."""

PROMPTS = ("a red fox in fresh snow", "a lighthouse at dusk", "a bicycle made of glass", "two herons and a storm")
REPORT_KEY = "on_time"

# What an image costs beside its segments: checking, image encoding and the way back, roughly.
TRANSPORT_S = 0.15


@dataclass
class OnTimeTally:
    """How many images were asked for and how many came on time, by resolution. Whatever failed was not on time."""

    submitted: dict[str, int] = field(default_factory=dict)
    on_time: dict[str, int] = field(default_factory=dict)

    def add(self, size: str, submitted: int, on_time: int) -> None:
        """Count requests of one resolution."""
        self.submitted[size] = self.submitted.get(size, 0) + submitted
        self.on_time[size] = self.on_time.get(size, 0) + on_time

    def rows(self) -> Iterator[tuple[str, int, int, float]]:
        """Resolution, submitted, on time, ratio; the total last."""
        totals = {**self.submitted, "all": sum(self.submitted.values())}
        for size, submitted in totals.items():
            on_time = sum(self.on_time.values()) if size == "all" else self.on_time[size]
            yield size, submitted, on_time, on_time / submitted if submitted else 0.0

    def ratio(self) -> float:
        """On time of all submitted; 0 where none was."""
        return list(self.rows())[-1][3]

    def take(self) -> dict[str, tuple[int, int]]:
        """The counts by resolution, and start again from nothing."""
        counts = {size: (submitted, self.on_time[size]) for size, submitted in self.submitted.items()}
        self.clear()
        return counts

    def clear(self) -> None:
        """Forget everything."""
        self.submitted.clear()
        self.on_time.clear()


TALLY = OnTimeTally()


@dataclass(frozen=True)
class Shape:
    """A model's resolution and the shortest time that one image of it takes on this server."""

    model: str
    height: int
    width: int
    shortest_s: float

    @property
    def size(self) -> str:
        """Width first."""
        return f"{self.width}x{self.height}"


def shapes_of(model: str, table: Mapping[str, Any], num_steps: int) -> list[Shape]:
    """The profiled resolutions of a model's latency table with their shortest latency at `num_steps` steps."""
    fastest: dict[tuple[int, int], float] = {}
    for entry in table["step"]:
        if entry["batch"] == 1:
            key = (entry["height"], entry["width"])
            fastest[key] = min(entry["seconds"], fastest.get(key, entry["seconds"]))
    decode = {(entry["height"], entry["width"]): entry["seconds"] for entry in table["decode"]}
    encode_s = min(entry["seconds"] for entry in table["encode"])
    return [
        Shape(model, height, width, encode_s + num_steps * step_s + decode.get((height, width), 0.0) + TRANSPORT_S)
        for (height, width), step_s in fastest.items()
    ]


def answer_of(body: str | None) -> dict[str, Any]:
    """The JSON object in a response's body; an empty one if there is none."""
    try:
        answer = json.loads(body or "")
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def elements_of(value: Any) -> list[Any]:
    """What a tensor in the JSON of `generate` holds: Triton writes one of one element as that element."""
    if isinstance(value, list):
        return value
    return [value] if value else []


def problem_of(image: bytes, shape: Shape) -> str:
    """What is wrong with an image; empty if nothing is."""
    try:
        with Image.open(io.BytesIO(image)) as picture:
            picture.load()
            size = picture.size
    except (UnidentifiedImageError, OSError) as error:
        return f"the image does not decode: {error}"
    return "" if size == (shape.width, shape.height) else f"the image is {size[0]}x{size[1]}, not {shape.size}"


class ImageUser(FastHttpUser):
    """Asks for images, looks at them, and asks for the next."""

    wait_time = between(0.0, 0.5)
    network_timeout = 300.0
    connection_timeout = 10.0

    def on_start(self) -> None:
        """Learn from the server what it can draw and how fast."""
        options = self.environment.parsed_options
        with self.client.post("/v2/models/denoise/generate", json={"op": "status"}, name="status") as response:
            if response.status_code != HTTP_OK:
                raise StopUser(f"no status from {self.host}: {response.text}")
            status = json.loads(json.loads(response.text)["metadata"])
        self.num_steps = options.steps
        self.scales = [float(text) for text in options.slo_scales.split(",")]
        models = status["models"]
        self.shapes = [
            shape
            for name, facts in models.items()
            if options.model in ("", name)
            for shape in shapes_of(name, facts["latency_table"], self.num_steps)
        ]
        if not self.shapes:
            raise StopUser(f"{self.host} serves no model {options.model!r}; it serves {', '.join(models) or 'none'}")
        self.has_several_models = len({shape.model for shape in self.shapes}) > 1

    @task
    def generate(self) -> None:
        """One request, with a deadline of its own."""
        options = self.environment.parsed_options
        shape = random.choice(self.shapes)
        fields = {
            "prompt": random.choice(PROMPTS),
            "model": shape.model,
            "height": shape.height,
            "width": shape.width,
            "num_inference_steps": self.num_steps,
            "num_images": options.num_images,
            "latency_threshold": round(random.choice(self.scales) * options.num_images * shape.shortest_s, 3),
        }
        if options.negative_prompt:
            fields["negative_prompt"] = options.negative_prompt
        endpoint = SEVERAL_IMAGES if options.num_images > 1 else ONE_IMAGE
        kind = f"{shape.model} {shape.size}" if self.has_several_models else shape.size
        on_time = False
        request = self.client.post(
            f"/v2/models/{endpoint}/generate", json=fields, name=f"generate {kind}", catch_response=True
        )
        with request as response:
            answer = answer_of(response.text)
            images = [base64.b64decode(image) for image in elements_of(answer.get("image"))]
            problems = [problem for image in images if (problem := problem_of(image, shape))]
            if len(images) != options.num_images:
                response.failure(f"{response.status_code}: {answer.get('error') or response.text}")
            elif problems:
                response.failure(problems[0])
            else:
                on_time = all(json.loads(told)["deadline_met"] for told in elements_of(answer["metadata"]))
        TALLY.add(kind, 1, int(on_time))


@events.init_command_line_parser.add_listener
def add_options(parser: ArgumentParser) -> None:
    """Options of our own, which locust shows on its start page too."""
    group = parser.add_argument_group("TetriServe")
    group.add_argument("--steps", type=int, default=20, help="denoising steps of each image")
    group.add_argument("--num-images", type=int, default=1, help="images of each request, which share its deadline")
    group.add_argument("--model", default="", help="only this one of the served models")
    group.add_argument("--negative-prompt", default="", help="sent with each request; an error for FLUX")
    group.add_argument(
        "--slo-scales", default="2,3,5", help="a deadline is one of these times the shortest possible latency"
    )
    group.add_argument(
        "--min-on-time", type=float, default=0.0, help="exit with status 3 if a smaller part came on time"
    )


@events.init.add_listener
def extend_page(environment: Environment, **_: object) -> None:
    """Add the tab "On time" to locust's page; there is none in headless runs and on workers."""
    web_ui = environment.web_ui
    if web_ui is None:
        return
    blueprint = Blueprint("on_time", __name__, template_folder=str(Path(__file__).parent / "locust_web/templates"))

    @blueprint.route("/on-time")
    def on_time_page() -> str:
        web_ui.update_template_args()
        return render_template("on_time.html", **web_ui.template_args)

    @blueprint.route("/on-time/stats")
    def on_time_stats() -> Any:
        keys = ("resolution", "submitted", "on_time", "ratio")
        return jsonify([dict(zip(keys, row, strict=True)) for row in TALLY.rows()])

    web_ui.app.register_blueprint(blueprint)
    # So that the page that locust prints the address of has the tab as well.
    web_ui.app.view_functions["index"] = web_ui.auth_required_if_enabled(on_time_page)


@events.report_to_master.add_listener
def report_to_master(client_id: str, data: dict[str, Any]) -> None:
    """A worker hands its counts over."""
    data[REPORT_KEY] = TALLY.take()


@events.worker_report.add_listener
def take_report(client_id: str, data: dict[str, Any]) -> None:
    """The master adds a worker's counts to its own."""
    for size, (submitted, on_time) in data.get(REPORT_KEY, {}).items():
        TALLY.add(size, submitted, on_time)


@events.test_start.add_listener
def start_anew(**_: object) -> None:
    """Each run counts for itself."""
    TALLY.clear()


@events.reset_stats.add_listener
def reset(**_: object) -> None:
    """Locust's own button."""
    TALLY.clear()


@events.quitting.add_listener
def print_summary(environment: Environment, **_: object) -> None:
    """The on-time ratio, by resolution and in all."""
    print("\nOn time (of all submitted; a failed request is a miss)")
    for size, submitted, on_time, ratio in TALLY.rows():
        print(f"  {size:>10}  {on_time:4d} of {submitted:4d}  {ratio:7.1%}")
    options = environment.parsed_options
    if options is not None and TALLY.ratio() < options.min_on_time:
        environment.process_exit_code = 3

"""One image asked for."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Request:
    """One image asked for, immutable from arrival to answer.

    Times are seconds on the engine's monotonic clock. `height` and `width` are pixels. `model` names the served
    model, "" where there is only one. `preview` asks for small images along with the progress. Requests of one
    `prompt_group`, but for "", arrive together and differ in nothing but id and seed. `max_sequence_length` is how
    many tokens T5 makes of the prompt, None for as many as the model's other requests have.
    """

    request_id: str
    height: int
    width: int
    num_steps: int
    arrival_s: float
    deadline_s: float
    prompt: str = ""
    negative_prompt: str = ""
    guidance_scale: float = 3.5
    seed: int = 0
    priority: int = 0
    stream_progress: bool = False
    preview: bool = False
    model: str = ""
    prompt_group: str = ""
    max_sequence_length: int | None = None

    @property
    def asks_for_guidance(self) -> bool:
        """Whether a model with classifier-free guidance needs a second pass for it."""
        return self.guidance_scale > 1.0

    @property
    def slo_s(self) -> float:
        """The latency that this request was promised, in seconds."""
        return self.deadline_s - self.arrival_s

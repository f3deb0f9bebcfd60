"""The load, in a process of its own: sends a trace to a server at the times that it names, whatever comes back."""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from tetriserve_backend.domain import ConfigurationError
from tetriserve_backend.domain.validation import explained
from tetriserve_backend.executor.death_watch import start_death_watch
from tetriserve_backend.simulator.trace import TraceRequest, read_trace
from tetriserve_client import AsyncTetriserveClient, GenerateResult, ImageRequest, Size, TetriserveClientError

_HEAD_START_S = 0.2


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client saw of one request; a line of `*.answers.jsonl`.

    Attributes:
        lag_s: how much later than the trace says it was sent.
        latency_s: from sending to the whole answer, at the client.
        total_s: from arrival at the server to the image file, which is what the deadline is about.
        image_encode_s: of that, from pixels to the file.
        queue_s: from arrival to the first work.
        deadline_met: by the server's own account; false without an image.
        predicted_finish_s: what the server expected at arrival, as seconds after it.
        error: why there is no image; empty if there is one.
    """

    id: str
    lag_s: float
    latency_s: float
    total_s: float | None = None
    image_encode_s: float | None = None
    queue_s: float | None = None
    deadline_met: bool = False
    predicted_finish_s: float | None = None
    error: str = ""

    @classmethod
    def of_result(cls, request_id: str, lag_s: float, result: GenerateResult) -> "Answer":
        """The answer of a request that got its image."""
        told = result.metadata
        return cls(
            request_id,
            lag_s,
            result.latency_s,
            total_s=float(told["total_s"]),
            image_encode_s=float(told["image_encode_s"]),
            queue_s=float(told["queue_s"]),
            deadline_met=result.deadline_met,
            predicted_finish_s=float(told["predicted_finish_s"]),
        )


_ANSWER = TypeAdapter(Answer)


def read_answers(path: Path) -> dict[str, Answer]:
    """The answers in a file, by request id.

    Raises:
        ConfigurationError: it holds something else; names file and line.
        OSError: it cannot be read.
    """
    answers: dict[str, Answer] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            answer = _ANSWER.validate_json(line)
        except ValidationError as error:
            what = explained(error.errors(include_url=False)[0], "line")
            raise ConfigurationError(f"{path}:{number}: no answer as tetriserve bench writes it: {what}") from error
        answers[answer.id] = answer
    return answers


async def replay(
    trace: Sequence[TraceRequest], url: str, *, id_prefix: str, output_format: str, give_up_s: float
) -> list[Answer]:
    """Send every request at its time and wait for all answers; in order of arrival.

    Args:
        trace: what to send.
        url: gRPC endpoint.
        id_prefix: in front of each id on the server, which must not know two requests of one id.
        output_format: of the images, which are dropped.
        give_up_s: how long to wait for each.

    Raises:
        TetriserveClientError: the server is not there before the first request.
    """
    async with AsyncTetriserveClient(url) as client:
        await client.status()
        start_s = time.monotonic() + _HEAD_START_S

        async def send(request: TraceRequest) -> Answer:
            due_s = start_s + request.arrival_s
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            sent_s = time.monotonic()
            try:
                result = await client.send(
                    ImageRequest(
                        request.prompt,
                        size=Size(width=request.width, height=request.height),
                        steps=request.num_inference_steps,
                        slo_s=request.slo_s,
                        seed=request.seed,
                        output_format=output_format,
                        request_id=id_prefix + request.id,
                    ),
                    timeout_s=give_up_s,
                )
            except TetriserveClientError as error:
                return Answer(request.id, sent_s - due_s, time.monotonic() - sent_s, error=str(error))
            return Answer.of_result(request.id, sent_s - due_s, result)

        return list(await asyncio.gather(*(send(request) for request in trace)))


def main() -> None:
    """Replay the trace of the command line, and write the answers.

    Exit status: 0 done; 1 there is no such server or trace, or the answers could not be written, which stderr tells.
    """
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("trace", type=Path)
    parser.add_argument("answers", type=Path)
    parser.add_argument("--url", required=True)
    parser.add_argument("--id-prefix", default="")
    parser.add_argument("--output-format", default="png")
    parser.add_argument("--give-up-s", type=float, default=300.0)
    options = parser.parse_args()
    start_death_watch()
    try:
        _replay_file(options)
    except (TetriserveClientError, ConfigurationError, OSError) as error:
        # One line, the last of stderr.
        sys.exit(" ".join(str(error).split()))


def _replay_file(options: argparse.Namespace) -> None:
    answers = asyncio.run(
        replay(
            list(read_trace(options.trace)),
            options.url,
            id_prefix=options.id_prefix,
            output_format=options.output_format,
            give_up_s=options.give_up_s,
        )
    )
    lines = [json.dumps(asdict(answer)) + "\n" for answer in answers]
    options.answers.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()

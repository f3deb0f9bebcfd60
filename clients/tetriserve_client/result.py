"""What comes back: progress by step, and images with their stories."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tetriserve_client.errors import ServerFailureError
from tetriserve_client.wire import Reply

_RAW = "raw"


@dataclass(frozen=True, slots=True)
class Progress:
    """`step` of `num_steps` denoising steps of an image are done, `elapsed_s` seconds after the request was sent.

    `preview` is a small image of what it will be, in the format asked for; None unless previews were asked for.
    """

    step: int
    num_steps: int
    elapsed_s: float
    image_index: int = 0
    preview: bytes | None = None


ProgressCallback: TypeAlias = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class SegmentReport:
    """One piece of the work on an image; times in seconds since the request's arrival at the server.

    Where `cfg_degree` is 2 each pass of classifier-free guidance had `sp_degree` ranks of its own. `batch_size`
    requests were in it together.
    """

    kind: str
    sp_degree: int
    ranks: tuple[int, ...]
    steps: int
    start_s: float
    duration_s: float
    cfg_degree: int = 1
    batch_size: int = 1


@dataclass(frozen=True, slots=True)
class ImageResult:
    """An image in the format asked for, the server's metadata, and the latency that this client saw."""

    image: bytes
    metadata: Mapping[str, Any]
    latency_s: float

    @property
    def index(self) -> int:
        """Which image of its request it is, from 0."""
        return int(self.metadata["image_index"])

    @property
    def request_id(self) -> str:
        """The id by which the server knew the request."""
        return str(self.metadata["request_id"])

    @property
    def seed(self) -> int:
        """The seed that makes this image again."""
        return int(self.metadata["seed"])

    @property
    def deadline_met(self) -> bool:
        """Whether the server finished the image before its deadline."""
        return bool(self.metadata["deadline_met"])

    @property
    def segments(self) -> tuple[SegmentReport, ...]:
        """The pieces of work that made this image, in order."""
        return tuple(
            SegmentReport(
                kind=str(entry["kind"]),
                sp_degree=int(entry["sp_degree"]),
                ranks=tuple(int(rank) for rank in entry["ranks"]),
                steps=int(entry["steps"]),
                start_s=float(entry["start_s"]),
                duration_s=float(entry["duration_s"]),
                cfg_degree=int(entry["cfg_degree"]),
                batch_size=int(entry["batch_size"]),
            )
            for entry in self.metadata["segments"]
        )

    @property
    def degrees(self) -> tuple[int, ...]:
        """The sequence-parallel degree of each denoise segment, in order."""
        return tuple(segment.sp_degree for segment in self.segments if segment.kind == "denoise")

    @property
    def pixels(self) -> npt.NDArray[np.uint8]:
        """The pixels of a `raw` image: shape (height, width, 3).

        Raises:
            ValueError: the image is in another format, which a library such as Pillow decodes.
        """
        if self.metadata["output_format"] != _RAW:
            raise ValueError(f"the image is {self.metadata['output_format']}; allowed: output_format={_RAW!r}")
        return np.frombuffer(self.image, np.uint8).reshape(self.metadata["image_shape"])

    def save(self, path: str | Path) -> Path:
        """Write the image to `path` and return it."""
        path = Path(path)
        path.write_bytes(self.image)
        return path


@dataclass(frozen=True, slots=True)
class GenerateResult:
    """All images of a request by index, and how long the caller waited for them.

    What is said of one image only, `image`, `metadata`, `seed`, `segments` and `degrees`, is said of the first.
    """

    images: tuple[ImageResult, ...]
    latency_s: float

    @classmethod
    def of(cls, images: Iterable[ImageResult], latency_s: float) -> "GenerateResult":
        """The result that is made of these images, in whatever order they came.

        Raises:
            ServerFailureError: there is none, or one is missing.
        """
        ordered = tuple(sorted(images, key=lambda image: image.index))
        expected = int(ordered[0].metadata["num_images"]) if ordered else 1
        if [image.index for image in ordered] != list(range(expected)):
            raise ServerFailureError(f"the server answered with {len(ordered)} of {expected} images")
        return cls(ordered, latency_s)

    @property
    def image(self) -> bytes:
        """The first image."""
        return self.images[0].image

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What the server tells of the first image."""
        return self.images[0].metadata

    @property
    def request_id(self) -> str:
        """The id by which the server knew the request."""
        return self.images[0].request_id

    @property
    def seed(self) -> int:
        """The seed that makes the first image again."""
        return self.images[0].seed

    @property
    def deadline_met(self) -> bool:
        """Whether the server finished all images before the deadline."""
        return all(image.deadline_met for image in self.images)

    @property
    def segments(self) -> tuple[SegmentReport, ...]:
        """The pieces of work that made the first image, in order."""
        return self.images[0].segments

    @property
    def degrees(self) -> tuple[int, ...]:
        """The sequence-parallel degree of each denoise segment of the first image, in order."""
        return self.images[0].degrees

    def save(self, path: str | Path) -> tuple[Path, ...]:
        """Write the image to `path`; several to `name-0.png`, `name-1.png` and so on for `name.png`."""
        path = Path(path)
        if len(self.images) == 1:
            return (self.images[0].save(path),)
        return tuple(image.save(path.with_stem(f"{path.stem}-{image.index}")) for image in self.images)


def read_event(reply: Reply, elapsed_s: float) -> Progress | ImageResult | None:
    """What one response tells `elapsed_s` seconds after the request was sent; None if it only ends the stream."""
    metadata = reply.metadata
    if metadata is None:
        return None
    if metadata.get("type") == "image":
        return ImageResult(reply.image, metadata, elapsed_s)
    return Progress(
        step=reply.step,
        num_steps=int(metadata["num_inference_steps"]),
        elapsed_s=elapsed_s,
        image_index=int(metadata["image_index"]),
        preview=reply.image or None,
    )

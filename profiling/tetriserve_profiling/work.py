"""What a profile measures: denoising steps, encodes and decodes of given shapes."""

from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from tetriserve_backend.domain import image_tokens


@dataclass(frozen=True, slots=True)
class StepWork:
    """One denoising step of `batch` images of `height` × `width` pixels on `sp` × `cfg` ranks."""

    height: int
    width: int
    batch: int = 1
    sp: int = 1
    cfg: int = 1

    @property
    def ranks(self) -> tuple[int, ...]:
        """Where it is measured."""
        return tuple(range(self.sp * self.cfg))

    @property
    def size(self) -> float:
        """Latent tokens per rank: what its duration grows with, to a first approximation."""
        return image_tokens(self.height, self.width) * self.batch / len(self.ranks)

    def __str__(self) -> str:
        """For people."""
        split = f" × cfg {self.cfg}" if self.cfg > 1 else ""
        return f"step {self.height}x{self.width} batch {self.batch} sp {self.sp}{split}"


@dataclass(frozen=True, slots=True)
class EncodeWork:
    """The text encoders for `batch` prompts on one rank."""

    batch: int = 1

    @property
    def ranks(self) -> tuple[int, ...]:
        """Where it is measured."""
        return (0,)

    @property
    def size(self) -> float:
        """Prompts."""
        return self.batch

    def __str__(self) -> str:
        """For people."""
        return f"encode batch {self.batch}"


@dataclass(frozen=True, slots=True)
class DecodeWork:
    """The VAE for one image of `height` × `width` pixels on one rank."""

    height: int
    width: int

    @property
    def ranks(self) -> tuple[int, ...]:
        """Where it is measured."""
        return (0,)

    @property
    def size(self) -> float:
        """Latent tokens."""
        return image_tokens(self.height, self.width)

    def __str__(self) -> str:
        """For people."""
        return f"decode {self.height}x{self.width}"


Work: TypeAlias = StepWork | EncodeWork | DecodeWork

_KINDS: dict[str, type[StepWork] | type[EncodeWork] | type[DecodeWork]] = {
    "step": StepWork,
    "encode": EncodeWork,
    "decode": DecodeWork,
}


def work_to_dict(work: Work) -> dict[str, Any]:
    """The work as JSON values."""
    kind = next(name for name, of in _KINDS.items() if isinstance(work, of))
    return {"kind": kind, **asdict(work)}


def work_from_dict(raw: dict[str, Any]) -> Work:
    """Read what `work_to_dict` wrote.

    Raises:
        KeyError, TypeError: it was something else.
    """
    return _KINDS[raw["kind"]](**{key: value for key, value in raw.items() if key != "kind"})

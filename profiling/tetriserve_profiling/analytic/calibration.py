"""The few numbers of the analytic model that are fitted rather than counted or taken from a datasheet."""

from typing import Annotated, TypeAlias

from pydantic import Field, model_validator

from tetriserve_backend.domain import ConfigurationError
from tetriserve_profiling.analytic.catalog import Description, read_description, shipped_file
from tetriserve_profiling.analytic.gpu import Gpu, Share

_Cost: TypeAlias = Annotated[float, Field(ge=0)]
CALIBRATION_FILE = shipped_file("calibration.yaml")
EAGER = "eager"


class AchievedShares(Description):
    """Shares of the datasheet's rates that kernels get on the GPU of the fit; see `Achieved`."""

    matmul: Share
    attention: Share
    convolution: Share
    memory: Share


class Software(Description):
    """What the code around the kernels costs.

    Attributes:
        elementwise_share: share of the elementwise traffic of uncompiled code that is left.
        is_compiled: whether what is between two products of matrices is one kernel.
        launch_us: host time of one kernel.
        collective_us: device time of one collective beside its transfer: layout copies, and waiting for the others.
        collective_host_us: host time of one collective.
    """

    elementwise_share: Share
    is_compiled: bool
    launch_us: _Cost
    collective_us: _Cost
    collective_host_us: _Cost


class Calibration(Description):
    """All of them.

    Attributes:
        gpu: name of the GPU of the fit.
        encode_host_ms: host time of one prompt's encode that grows with no tensor: tokenisation and copies.
        decode_host_ms: the same of a decode: conversion and the copy to the host.
    """

    gpu: str
    achieved: AchievedShares
    software: dict[str, Software]
    encode_host_ms: _Cost
    decode_host_ms: _Cost

    @model_validator(mode="after")
    def _has_eager(self) -> "Calibration":
        if EAGER not in self.software:
            raise ValueError(f"software: expected an entry '{EAGER}', which encodes and decodes run with")
        return self

    def software_named(self, name: str) -> Software:
        """One entry of `software`.

        Raises:
            ConfigurationError: there is none of that name.
        """
        if name not in self.software:
            raise ConfigurationError(f"software: '{name}' is not known; allowed: {', '.join(self.software)}")
        return self.software[name]

    def achieved_on(self, gpu: Gpu) -> AchievedShares:
        """The GPU's own shares, where its description tells them, else those of the fit."""
        return self.achieved.model_copy(update=gpu.achieved.model_dump(exclude_none=True))


def load_calibration() -> Calibration:
    """The shipped fit."""
    return read_description(CALIBRATION_FILE, Calibration)

"""The seconds of a pipeline's parts: one step, one encode, one decode."""

from dataclasses import dataclass

from tetriserve_backend.domain import image_tokens
from tetriserve_profiling.analytic.calibration import EAGER, Calibration
from tetriserve_profiling.analytic.flux import flux_layers
from tetriserve_profiling.analytic.gpu import Gpu
from tetriserve_profiling.analytic.layers import BYTES, Layer, total_weight_bytes
from tetriserve_profiling.analytic.model import FluxSizes, Model
from tetriserve_profiling.analytic.passes import ForwardPass
from tetriserve_profiling.analytic.sd3 import sd3_layers
from tetriserve_profiling.analytic.text_encoder import text_encoder_layers
from tetriserve_profiling.analytic.timing import Machine
from tetriserve_profiling.analytic.vae import decoder_layers


def transformer_layers(model: Model, shape: ForwardPass) -> list[Layer]:
    """One forward pass of the model's transformer on one rank."""
    if isinstance(model.transformer, FluxSizes):
        return flux_layers(model.transformer, shape)
    return sd3_layers(model.transformer, shape)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A model on a machine. Encodes and decodes are not compiled."""

    model: Model
    gpu: Gpu
    calibration: Calibration
    software: str = EAGER

    def step_s(self, height: int, width: int, batch: int = 1, sp: int = 1, cfg: int = 1) -> float:
        """Of one denoising step of `batch` images on `sp` × `cfg` ranks.

        A guided model has two rows for each image; with `cfg` = 2 each half of the ranks has one of them.

        Raises:
            ConfigurationError: nothing joins that many GPUs.
        """
        rows = batch * (2 // cfg if self.model.guided else 1)
        shape = ForwardPass(image_tokens(height, width), self.model.text_tokens, rows, sp)
        machine = Machine.of(self.gpu, self.calibration, self.software)
        seconds = machine.seconds(transformer_layers(self.model, shape), sp)
        return seconds + machine.seconds([_velocity_exchange(self.model, shape)], sp * cfg) if cfg > 1 else seconds

    def encode_s(self, batch: int = 1) -> float:
        """Of the text encoders for `batch` prompts, each with its negative if the model is guided."""
        machine = Machine.of(self.gpu, self.calibration, EAGER)
        passes = 2 if self.model.guided else 1
        encoders = [text_encoder_layers(encoder, batch) for encoder in self.model.text_encoders]
        return passes * (sum(map(machine.seconds, encoders)) + 1e-3 * batch * self.calibration.encode_host_ms)

    def decode_s(self, height: int, width: int) -> float:
        """Of the VAE for one image."""
        machine = Machine.of(self.gpu, self.calibration, EAGER)
        layers = decoder_layers(self.model.vae, height, width)
        return machine.seconds(layers) + 1e-3 * self.calibration.decode_host_ms

    def weight_bytes(self) -> float:
        """Of all parts, which every rank holds."""
        transformer = transformer_layers(self.model, ForwardPass(1, 1))
        encoders = [layer for encoder in self.model.text_encoders for layer in text_encoder_layers(encoder, 1)]
        embeddings = sum(BYTES * encoder.vocabulary * encoder.hidden_size for encoder in self.model.text_encoders)
        decoder = decoder_layers(self.model.vae, 16, 16)
        return sum(map(total_weight_bytes, (transformer, encoders, decoder))) + embeddings


def _velocity_exchange(model: Model, shape: ForwardPass) -> Layer:
    """Both halves of a guided step need the result of the other."""
    channels = model.transformer.output_channels * model.transformer.patch_size**2
    exchanged = 2 * shape.rows * shape.image_tokens * channels * BYTES
    return Layer("guidance", exchanged_bytes=exchanged, collectives=1, elementwise_bytes=4 * exchanged, launches=3)

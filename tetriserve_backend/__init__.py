"""TetriServe: deadline-aware serving of diffusion transformers inside NVIDIA Triton."""

__version__ = "0.1.0"

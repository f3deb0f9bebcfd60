"""How many latent tokens an image of a given size has."""

PIXELS_PER_TOKEN_SIDE = 16
"""A latent token covers 16×16 pixels in FLUX and SD3: the VAE shrinks by 8, the patch by 2."""


def image_tokens(height: int, width: int) -> int:
    """Latent tokens of an image of `height` × `width` pixels (each a multiple of 16)."""
    return (height // PIXELS_PER_TOKEN_SIDE) * (width // PIXELS_PER_TOKEN_SIDE)

"""One forward pass of a transformer, as a rank of a sequence-parallel group sees it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ForwardPass:
    """Shape of a pass.

    Attributes:
        image_tokens, text_tokens: of one image and of its prompt, over all ranks.
        rows: images, twice as many with guidance in the same pass.
        degree: ranks that share the sequence; divides the image tokens and the heads.
    """

    image_tokens: int
    text_tokens: int
    rows: int = 1
    degree: int = 1

    @property
    def image_rows(self) -> float:
        """Image tokens on one rank."""
        return self.rows * self.image_tokens / self.degree

    @property
    def text_rows(self) -> int:
        """Text tokens on one rank, padded to a whole number."""
        return self.rows * -(-self.text_tokens // self.degree)

    @property
    def sequence(self) -> float:
        """Tokens of one image and its prompt that attend to each other, with padding."""
        return (self.image_rows + self.text_rows) * self.degree / self.rows

"""Lists in command-line options."""

from tetriserve_backend.domain import ConfigurationError
from tetriserve_backend.triton_adapter.settings import parse_resolution


def parse_numbers(option: str, text: str) -> tuple[int, ...]:
    """`1,2,4` as numbers of at least 1.

    Raises:
        ConfigurationError: it is something else; names the option.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigurationError(f"{option} {text}: allowed: numbers of at least 1, with commas between, such as 1,2,4")
    return tuple(dict.fromkeys(int(part) for part in parts))


def parse_resolutions(option: str, text: str) -> tuple[tuple[int, int], ...]:
    """`256x256,512x512` as (height, width) in pixels.

    Raises:
        ConfigurationError: it is something else; names the option.
    """
    try:
        return tuple(dict.fromkeys(parse_resolution(part.strip()) for part in text.split(",")))
    except ValueError as error:
        raise ConfigurationError(f"{option} {text}: {error}") from error

"""Descriptions in YAML: those that come with the package, by name, and the user's own, by path."""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from tetriserve_backend.domain import ConfigurationError
from tetriserve_backend.domain.validation import what_is_wrong, where_it_is

_HERE = Path(__file__).parent


class Description(BaseModel):
    """Base of everything that is read from a file; a key that is not known is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


_Described = TypeVar("_Described", bound=Description)


def shipped_names(kind: str) -> tuple[str, ...]:
    """Names of the shipped descriptions of a kind: `gpus` or `models`."""
    return tuple(sorted(file.stem for file in (_HERE / kind).glob("*.yaml")))


def shipped_file(*parts: str) -> Path:
    """A data file of this package."""
    return _HERE.joinpath(*parts)


def read_description(file: Path, of: type[_Described]) -> _Described:
    """Read and check one YAML file.

    Raises:
        ConfigurationError: names the file, the field and what was expected there.
    """
    return check_description(read_yaml(file), of, str(file))


def read_yaml(file: Path) -> Any:
    """What a YAML or JSON file holds.

    Raises:
        ConfigurationError: it cannot be read.
    """
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{file}: expected a readable YAML or JSON file: {error}") from error


def check_description(values: object, of: type[_Described], origin: str) -> _Described:
    """Check what a file holds.

    Raises:
        ConfigurationError: names the file, the field and what was expected there.
    """
    if not isinstance(values, dict):
        raise ConfigurationError(f"{origin}: expected a mapping, got {type(values).__name__}")
    try:
        return of.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = where_it_is(first)
        if first["type"] == "missing":
            problem = "missing; expected a value"
        elif first["type"] == "extra_forbidden":
            problem = f"unknown; allowed: {', '.join(sorted(_fields(of)))}" if len(first["loc"]) == 1 else "unknown"
        else:
            problem = f"{what_is_wrong(first)}, got {first['input']!r:.80}"
        raise ConfigurationError(f"{origin}: {field}: {problem}") from error


def _fields(of: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in of.model_fields.items()]

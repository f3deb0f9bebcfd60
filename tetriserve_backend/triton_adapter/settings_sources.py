"""Where settings come from: YAML file, `key=value` options and the parameters of a `config.pbtxt`.

Precedence: option > `--set` > file > default; `merge` takes the layers in that order, weakest first.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import yaml
from pydantic import BaseModel, ValidationError

from tetriserve_backend.domain import ConfigurationError
from tetriserve_backend.triton_adapter.settings import ServerSettings

SettingsTree: TypeAlias = dict[str, Any]


def read_settings_file(path: Path) -> SettingsTree:
    """The mapping in a YAML file; an empty file is an empty mapping.

    Raises:
        ConfigurationError: the file cannot be read, is not YAML or holds no mapping.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"settings file {path}: {error}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigurationError(f"settings file {path}: expected a mapping of settings, got {type(tree).__name__}")
    return tree


def parse_assignment(text: str) -> SettingsTree:
    """The tree of one `a.b=value`, the value being YAML.

    Raises:
        ConfigurationError: no `=`, an empty key or a value that is not YAML.
    """
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise ConfigurationError(f"'{text}': allowed: key=value, such as scheduler.policy=fixed-sp2")
    return nested(key.strip(), _parse_value(key, value))


def nested(dotted_key: str, value: object) -> SettingsTree:
    """`{"a": {"b": value}}` for `a.b`."""
    tree: Any = value
    for part in reversed(dotted_key.split(".")):
        tree = {part: tree}
    return dict(tree)


def merge(layers: Iterable[SettingsTree]) -> SettingsTree:
    """One tree in which later layers win, key by key."""
    merged: SettingsTree = {}
    for layer in layers:
        _merge_into(merged, layer)
    return merged


def build_settings(tree: SettingsTree) -> ServerSettings:
    """Validated settings.

    Raises:
        ConfigurationError: an unknown key (the message names what is allowed there) or a wrong value.
    """
    try:
        return ServerSettings.model_validate(tree)
    except ValidationError as error:
        raise ConfigurationError("; ".join(_explain(item) for item in error.errors())) from error


def to_parameters(settings: ServerSettings, sections: Iterable[str]) -> dict[str, str]:
    """Dotted key → JSON text (which is YAML) of the settings in `sections`, as `config.pbtxt` carries them."""
    parameters: dict[str, str] = {}
    for section in sections:
        _flatten(section, getattr(settings, section), parameters)
    return parameters


def from_parameters(parameters: Mapping[str, str]) -> ServerSettings:
    """Settings from the parameters of a `config.pbtxt`; what they lack has its default.

    Raises:
        ConfigurationError: as `build_settings`.
    """
    return build_settings(merge(nested(key, _parse_value(key, text)) for key, text in parameters.items()))


def _parse_value(key: str, text: str) -> object:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{key}: '{text}' is not YAML: {error}") from error


def _merge_into(target: SettingsTree, layer: SettingsTree) -> None:
    for key, value in layer.items():
        known = target.get(key)
        if isinstance(known, dict) and isinstance(value, dict):
            _merge_into(known, value)
        else:
            target[key] = merge([value]) if isinstance(value, dict) else value


def _flatten(prefix: str, value: object, out: dict[str, str]) -> None:
    if not isinstance(value, BaseModel):
        out[prefix] = json.dumps(value)
        return
    dumped = value.model_dump(mode="json")
    for name in type(value).model_fields:
        child = getattr(value, name)
        _flatten(f"{prefix}.{name}", child if isinstance(child, BaseModel) else dumped[name], out)


def _explain(item: Any) -> str:
    location = tuple(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"{'.'.join(location)}: unknown setting; allowed: {', '.join(_allowed_keys(location[:-1]))}"
    got = "" if isinstance(item["input"], Mapping) else f", got {item['input']!r}"
    return f"{'.'.join(location)}: {item['msg']}{got}"


def _allowed_keys(path: tuple[str, ...]) -> list[str]:
    model: type[BaseModel] = ServerSettings
    for part in path:
        annotation = model.model_fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return [".".join((*path, name)) for name in sorted(model.model_fields)]

"""Where settings come from: YAML file, `key=value` options and the parameters of a `config.pbtxt`.

Precedence: option > `--set` > file > default; `merge` takes the layers in that order, weakest first.
"""

import json
from collections.abc import Iterable, Mapping
from functools import reduce
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from tetriserve_backend.domain import ConfigurationError
from tetriserve_backend.domain.validation import what_is_wrong
from tetriserve_backend.triton_adapter.settings import ServedModelSettings, ServerSettings

SettingsTree: TypeAlias = dict[str, Any]
Settings = TypeVar("Settings", bound=BaseModel)


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
    return _build(ServerSettings, tree)


def to_parameters(settings: BaseModel, keys: Iterable[str]) -> dict[str, str]:
    """Dotted key → JSON text (which is YAML) of the settings at and below `keys`, as `config.pbtxt` carries them."""
    parameters: dict[str, str] = {}
    for key in keys:
        _flatten(key, reduce(getattr, key.split("."), settings), parameters)
    return parameters


def from_parameters(parameters: Mapping[str, str]) -> ServerSettings:
    """Settings from the parameters of a `config.pbtxt`; what they lack has its default.

    Raises:
        ConfigurationError: as `build_settings`.
    """
    return _from_parameters(ServerSettings, parameters)


def served_model_from_parameters(parameters: Mapping[str, str]) -> ServedModelSettings:
    """The same for a model that stands for one of the served ones.

    Raises:
        ConfigurationError: as `build_settings`.
    """
    return _from_parameters(ServedModelSettings, parameters)


def _from_parameters(kind: type[Settings], parameters: Mapping[str, str]) -> Settings:
    return _build(kind, merge(nested(key, _parse_value(key, text)) for key, text in parameters.items()))


def _build(kind: type[Settings], tree: SettingsTree) -> Settings:
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise ConfigurationError("; ".join(_explain(item, kind) for item in error.errors())) from error


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


def _explain(item: Any, kind: type[BaseModel]) -> str:
    location = tuple(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"{'.'.join(location)}: unknown setting; allowed: {', '.join(_allowed_keys(kind, location[:-1]))}"
    got = "" if isinstance(item["input"], Mapping) else f", got {item['input']!r}"
    return f"{'.'.join(location)}: {what_is_wrong(item)}{got}"


def _allowed_keys(kind: type[BaseModel], path: tuple[str, ...]) -> list[str]:
    for part in path:
        # The place of an item in a list says nothing about its keys.
        annotation = kind if part.isdecimal() else kind.model_fields[part].annotation
        items = [item for item in get_args(annotation) if _is_settings(item)]
        annotation = items[0] if items else annotation
        if not _is_settings(annotation):
            return []
        kind = annotation
    return [".".join((*path, name)) for name in sorted(kind.model_fields)]


def _is_settings(annotation: object) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)

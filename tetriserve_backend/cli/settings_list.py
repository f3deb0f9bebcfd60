"""Every setting with its default and meaning, as `tetriserve serve --settings` prints them."""

import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Literal, get_args, get_origin

from pydantic import BaseModel

from tetriserve_backend.triton_adapter.settings import ServedModelSettings, ServerSettings

_WIDTH = 100
_NAMES = re.compile(r" {4}(\w+(?:, \w+)*): (.*)")


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting; `default` is JSON, which is YAML too."""

    key: str
    default: str
    meaning: str


def list_settings(kind: type[BaseModel] = ServerSettings, prefix: str = "") -> Iterator[Setting]:
    """Each setting of `kind`, and behind them those of the models in it."""
    meanings, layers = _meanings(kind), dict[str, type[BaseModel]]()
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            layers[f"{prefix}{name}."] = field.annotation
        else:
            meaning = meanings.get(name, "") + _allowed(field.annotation)
            yield Setting(f"{prefix}{name}", json.dumps(field.default), meaning)
    for key, layer in layers.items():
        yield from list_settings(layer, key)


def describe_settings() -> str:
    """The list as text, a layer after the other."""
    lines = ["Values are YAML. Set them by --set KEY=VALUE, or in the file of --config, where each dot is a level."]
    layer = None
    for setting in list_settings():
        head = setting.key.rpartition(".")[0]
        if head != layer:
            layer = head
            lines += ["", f"[{layer or 'the server as a whole'}]"]
        lines.append(f"{setting.key} = {setting.default}")
        lines += textwrap.wrap(setting.meaning, _WIDTH, initial_indent="    ", subsequent_indent="    ")
    item = ", ".join(ServedModelSettings.model_fields)
    return "\n".join([*lines, "", f"An entry of `models` has the keys {item}; `model` in it has those of [model]."])


def _meanings(kind: type[BaseModel]) -> dict[str, str]:
    """By field, from the section `Attributes` of the docstring, in the words of YAML."""
    meanings: dict[str, str] = {}
    names: list[str] = []
    for line in (inspect.getdoc(kind) or "").partition("Attributes:\n")[2].splitlines():
        entry = _NAMES.fullmatch(line)
        names = entry[1].split(", ") if entry else names
        for name in names:
            meanings[name] = f"{meanings.get(name, '')} {entry[2] if entry else line.strip()}".strip()
    return {name: re.sub(r"\bNone\b", "null", text) for name, text in meanings.items()}


def _allowed(annotation: object) -> str:
    """The values of a choice."""
    choices: tuple[object, ...] = ()
    if get_origin(annotation) is Literal:
        choices = get_args(annotation)
    elif isinstance(annotation, type) and issubclass(annotation, Enum):
        choices = tuple(choice.value for choice in annotation)
    return f" Allowed: {', '.join(map(str, choices))}." if choices else ""

"""What pydantic found wrong with a value, in words for whoever wrote the value.

Each function takes one of `ValidationError.errors()`.
"""

from collections.abc import Mapping
from typing import Any

_PREFIX = "Value error, "


def where_it_is(item: Mapping[str, Any]) -> str:
    """The value's place, with dots between; empty for the whole."""
    return ".".join(str(part) for part in item["loc"])


def what_is_wrong(item: Mapping[str, Any]) -> str:
    """The message, without the name of the exception that we raised ourselves."""
    return str(item["msg"]).removeprefix(_PREFIX)


def explained(item: Mapping[str, Any], whole: str = "") -> str:
    """Where it is (`whole` where that is everything), what is wrong and what was given.

    A mapping is not repeated: it is all that was given, and what is wrong is one of its keys, or none of them.
    """
    field = where_it_is(item) or whole
    got = "" if isinstance(item["input"], dict) else f", got {item['input']!r:.80}"
    return f"{field}: {what_is_wrong(item)}{got}" if field else f"{what_is_wrong(item)}{got}"

"""What pydantic found wrong with a value, in words for whoever wrote the value."""

from collections.abc import Mapping
from typing import Any

_PREFIX = "Value error, "


def what_is_wrong(item: Mapping[str, Any]) -> str:
    """The message of one of `ValidationError.errors()`, without the name of the exception that we raised ourselves."""
    return str(item["msg"]).removeprefix(_PREFIX)

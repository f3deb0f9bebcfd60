"""Reads a Dockerfile's instructions, as far as tests need it."""

import re
from dataclasses import dataclass
from pathlib import Path

_FLAG = re.compile(r"^(--[a-z]+(=\S+)?\s+)+")


@dataclass(frozen=True)
class Instruction:
    """A keyword such as RUN, and what follows it on one line, without flags such as --mount."""

    keyword: str
    text: str


def read_instructions(path: Path) -> list[Instruction]:
    """Instructions in order; comments and line breaks are gone."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    found = []
    for line in joined.splitlines():
        if line.strip():
            keyword, _, text = line.strip().partition(" ")
            found.append(Instruction(keyword.upper(), _FLAG.sub("", " ".join(text.split()))))
    return found

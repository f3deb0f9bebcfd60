"""Reads what the server adds to its log file, and picks out what an operator should see."""

from pathlib import Path

# With the quote that Triton puts around a message: its own messages may hold our name too.
_MARK = '"tetriserve: '


class LogTail:
    """Follows a growing file from where it is now.

    Args:
        path: the log; None when the server's output goes to the terminal anyway.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._offset = path.stat().st_size if path is not None and path.exists() else 0
        self._rest = ""

    def news(self) -> list[str]:
        """What our own code logged since the last call, without Triton's prefix."""
        *lines, self._rest = (self._rest + self._read()).split("\n")
        return [line.partition(_MARK)[2].rstrip('"') for line in lines if _MARK in line]

    def last_problems(self, count: int) -> list[str]:
        """The last lines of the log that are neither information nor part of a table."""
        if self._path is None or not self._path.exists():
            return []
        lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines()
        return [line for line in lines if line.strip() and line[0] not in "I+|"][-count:]

    def _read(self) -> str:
        if self._path is None or not self._path.exists():
            return ""
        with self._path.open("rb") as log:
            log.seek(self._offset)
            data = log.read()
        self._offset += len(data)
        return data.decode("utf-8", errors="replace")

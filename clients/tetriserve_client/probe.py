"""`python -m tetriserve_client.probe [URL]`: exit status 0 if a server answers through every one of its models."""

import sys
from collections.abc import Sequence

from tetriserve_client.errors import TetriserveClientError
from tetriserve_client.http import HttpTetriserveClient

_DEFAULT_URL = "http://127.0.0.1:8000"


def main(arguments: Sequence[str]) -> int:
    """Probe the server at the first argument, and say what is wrong with it."""
    url = arguments[0] if arguments else _DEFAULT_URL
    try:
        status = HttpTetriserveClient(url).probe()
    except TetriserveClientError as error:
        print(f"{url}: {error}", file=sys.stderr)
        return 1
    if status.get("state") == "failed":
        print(f"{url}: the engine failed: {status.get('failure')}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

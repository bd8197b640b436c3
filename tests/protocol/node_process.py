"""A listener in a process of its own, to be killed: `python -m tests.protocol.node_process FOLDER` prints its port."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.protocol.listening import listening


def main() -> None:
    """Listen until standard input ends."""
    with listening(Path(sys.argv[1])) as node:
        print(node.port, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()

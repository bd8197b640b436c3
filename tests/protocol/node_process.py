"""A listener in a process of its own, to be killed: `python -m tests.protocol.node_process FOLDER [N]` prints its port.

N is `[node] listener_processes`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from node.settings import NodeSettings, Settings
from tests.protocol.listening import listening


def main() -> None:
    """Listen until standard input ends."""
    processes = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    settings = Settings(node=NodeSettings(port=0, listener_processes=processes))
    with listening(Path(sys.argv[1]), settings=settings) as node:
        print(node.port, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()

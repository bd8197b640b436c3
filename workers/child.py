"""How a child tells its parent what it does: one request line on standard input, JSON lines on standard output.

The last line is `{"end": "done"}`, or `"usage"`, `"unsuitable"` or `"failed"` with `message`; `"usage"` has `file` and
`line` too. What libraries print goes nowhere.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from node.errors import ConfigError, Unsuitable, WetreadError

Tell = Callable[[dict[str, Any]], None]


def answer(work: Callable[[str, Tell], None]) -> None:
    """Give the request line to `work`, and say how it ended."""
    answers = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)

    def tell(message: dict[str, Any]) -> None:
        os.write(answers, json.dumps(message).encode() + b"\n")

    tell(_end(work, tell))


def _end(work: Callable[[str, Tell], None], tell: Tell) -> dict[str, Any]:
    try:
        work(sys.stdin.readline(), tell)
    except ConfigError as error:
        return {"end": "usage", "file": error.file, "line": error.line, "message": error.message}
    except Unsuitable as error:
        return {"end": "unsuitable", "message": str(error)}
    except WetreadError as error:
        return {"end": "failed", "message": str(error)}
    except OSError as error:
        return {"end": "failed", "message": f"{error.filename or 'a file'}: {error.strerror or error}"}
    except MemoryError:
        return {"end": "failed", "message": "This needs more memory than there is."}
    except BaseException as error:  # the border between the pipeline and its supervisor; decoders raise BaseException
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        return {"end": "failed", "message": f"It failed: {type(error).__name__} at {place}."}
    return {"end": "done"}

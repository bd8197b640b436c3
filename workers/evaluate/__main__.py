"""The child of `wetread evaluate`: one request line on standard input, JSON lines of progress and the end on output.

`{"end": "done"}`, or `"usage"`, `"unsuitable"` or `"failed"` with `message`; `"usage"` has `file` and `line` too.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from node import bundles
from node.errors import ConfigError, Unsuitable, WetreadError
from workers.evaluate import manifest
from workers.evaluate.request import Request


def main() -> None:
    """Evaluate, and say how it ended."""
    answers = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)  # a decoder may print what it reads

    def tell(message: dict[str, Any]) -> None:
        os.write(answers, json.dumps(message).encode() + b"\n")

    tell(_end(tell))


def _end(tell: Any) -> dict[str, Any]:
    try:
        request = Request.from_json(sys.stdin.readline())
        bundle = bundles.load(Path(request.bundle))
        cases = manifest.load(Path(request.manifest), bundle)
        from workers.evaluate.run import evaluate  # torch takes seconds: a wrong manifest is told before

        evaluate(request, bundle, cases, tell)
    except ConfigError as error:
        return {"end": "usage", "file": error.file, "line": error.line, "message": error.message}
    except Unsuitable as error:
        return {"end": "unsuitable", "message": str(error)}
    except WetreadError as error:
        return {"end": "failed", "message": str(error)}
    except OSError as error:
        return {"end": "failed", "message": f"{error.filename or 'a file'}: {error.strerror or error}"}
    except MemoryError:
        return {"end": "failed", "message": "The evaluation needs more memory than there is."}
    except BaseException as error:  # the border between the pipeline and its supervisor; decoders raise BaseException
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        return {"end": "failed", "message": f"The evaluation failed: {type(error).__name__} at {place}."}
    return {"end": "done"}


if __name__ == "__main__":
    main()

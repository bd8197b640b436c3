"""TOML files read into frozen models; every error names the file, the line, the key and what was expected.

Knows nothing about what the keys mean: that is `node/settings.py`.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from node.errors import ConfigError

Key = tuple[str | int, ...]
Model = TypeVar("Model", bound=BaseModel)

_HEADER = re.compile(r"\s*\[(\[)?\s*(?P<name>[^\[\]]+?)\s*\]")
_ASSIGNMENT = re.compile(
    r"\s*(?P<key>(?:[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|\"[^\"]*\"))*)\s*="
)
_PART = re.compile(r"\"([^\"]*)\"|'([^']*)'|([A-Za-z0-9_-]+)")

_EXPECTED = {
    "model_type": "a table was expected",
    "dict_type": "a table was expected",
    "tuple_type": "a list was expected",
    "int_type": "a whole number was expected",
    "bool_type": "true or false was expected",
    "string_type": "text in quotes was expected",
}
"""What pydantic says in Python's words, in TOML's."""


def read_toml(path: Path) -> tuple[dict[str, Any], str]:
    """Return the parsed file and its text; raises `ConfigError` naming the line of a syntax error."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(path, None, "there is no such file; `wetread config init` writes one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(path, None, f"cannot be read as UTF-8 text ({type(error).__name__})") from None
    try:
        return tomllib.loads(text), text
    except tomllib.TOMLDecodeError as error:
        message, line = str(error), re.search(r"at line (\d+)", str(error))
        end = len(text.splitlines()) if "at end of document" in message else None
        raise ConfigError(path, int(line[1]) if line else end, f"not valid TOML: {message}") from None
    except RecursionError:
        raise ConfigError(path, 1, "not valid TOML: brackets are nested too deep") from None


def read_model(path: Path, model: type[Model]) -> tuple[Model, dict[Key, int]]:
    """Read `path` into `model`; return it with the line of every key. Raises `ConfigError`, first fault first."""
    data, text = read_toml(path)
    lines = dict(key_lines(text))
    try:
        return model.model_validate(data), lines
    except ValidationError as error:
        faults = [_explain(fault, model, data, lines) for fault in error.errors()]
        line, message = min(faults, key=lambda fault: fault[0] or 0)
        raise ConfigError(path, line, message) from None


def line_of(key: Key, lines: dict[Key, int]) -> int | None:
    """Return the line of `key`, or of the nearest table around it that the file has."""
    while key:
        if key in lines:
            return lines[key]
        key = key[:-1]
    return None


def title(key: Key, data: Any) -> str:
    """Return `key` as a person would say it: `peer "CT 1": ae_title`, `[node] port`."""
    if len(key) > 1 and isinstance(key[1], int):
        name = data[key[0]][key[1]].get("name", f"number {key[1] + 1}")
        rest = ".".join(str(part) for part in key[2:])
        return f'{key[0]} "{name}"' + (f": {rest}" if rest else "")
    if len(key) > 1:
        table, last = ".".join(str(part) for part in key[:-1]), key[-1]
        return f"[{table}] {last}"
    return str(key[0]) if key else "the file"


def key_lines(text: str) -> Iterator[tuple[Key, int]]:
    """Yield (key path, line from 1) for every table header and assignment of a TOML text."""
    table: Key = ()
    counts: dict[Key, int] = {}
    open_value = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if open_value:
            open_value = _still_open(open_value + "\n" + line)
            continue
        if header := _HEADER.match(line):
            table = _table(_parts(header["name"]), bool(header[1]), counts)
            yield table, number
        elif assignment := _ASSIGNMENT.match(line):
            yield (*table, *_parts(assignment["key"])), number
            open_value = _still_open(line[assignment.end() :])


def _table(name: Key, is_array: bool, counts: dict[Key, int]) -> Key:
    """Return the path of a `[table]` or of the next item of an `[[array of tables]]`."""
    if is_array:
        counts[name] = counts.get(name, -1) + 1
        return (*name, counts[name])
    for length in range(len(name) - 1, 0, -1):  # a table inside the latest item of an array
        if name[:length] in counts:
            return (*name[:length], counts[name[:length]], *name[length:])
    return name


def _parts(dotted: str) -> Key:
    return tuple(a or b or c for a, b, c in _PART.findall(dotted))


def _still_open(value: str) -> str:
    """Return `value` while a bracket or a multi-line string is open in it, else the empty string."""
    bare = re.sub(
        r'"""[\s\S]*?"""' + r"|'''[\s\S]*?'''" + r'|"(?!"")(?:\\.|[^"\\\n])*"' + r"|'(?!'')[^'\n]*'|#.*", "", value
    )
    if '"""' in bare or "'''" in bare:
        return value
    return value if sum(map(bare.count, "[{")) > sum(map(bare.count, "]}")) else ""


def _explain(fault: Any, model: type[BaseModel], data: Any, lines: dict[Key, int]) -> tuple[int | None, str]:
    """Return (line, message) for one pydantic error."""
    key: Key = tuple(fault["loc"])
    if fault["type"] == "extra_forbidden":
        return line_of(key, lines), _unknown(key, model, data)
    if fault["type"] == "missing":
        return line_of(key, lines), f"{title(key, data)}: is missing"
    while len(key) > 1 and key not in lines and isinstance(key[-1], str) and not _exists(key, data):
        key = key[:-1]  # a branch of a union, not a key of the file
    while len(key) > 2 and isinstance(key[-1], int):
        key = key[:-1]  # an item of a list
    message = _EXPECTED.get(fault["type"], fault["msg"].removeprefix("Value error, "))
    shown = "" if fault["type"] == "value_error" else f"; {fault['input']!r} was found"
    return line_of(key, lines), f"{title(key, data)}: {message[0].lower() + message[1:]}{shown}"


def _unknown(key: Key, model: type[BaseModel], data: Any) -> str:
    known = _known_keys(model, key[:-1])
    near = difflib.get_close_matches(str(key[-1]), known, n=1, cutoff=0.5)
    hint = f'did you mean "{near[0]}"?' if near else f"known keys here are {', '.join(known)}"
    return f"{title(key, data)}: unknown key; {hint}"


def _known_keys(model: type[BaseModel], key: Key) -> list[str]:
    """Return the keys that `model` knows in the table at `key`."""
    for part in key:
        if isinstance(part, int) or part not in model.model_fields:
            continue  # an index of an array of tables, or a table's own name
        model = next(iter(_models(model.model_fields[part].annotation)), model)
    return list(model.model_fields)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def _exists(key: Key, data: Any) -> bool:
    for part in key:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return False
    return True

"""The values of the configuration files: durations and sizes with units, AE Titles, addresses, URLs.

Each parser returns the value or raises a ValueError that says what was expected; `node/configfile.py` adds file,
line and key.
"""

from __future__ import annotations

import ipaddress
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field

_DURATION = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_BROKERS = ("redis", "rediss", "redis+socket", "memory")
_SIZE = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def parse_duration(value: Any) -> float:
    """Return the seconds in `"60 s"`, `"15 min"`, `"72 h"`, `"30 d"`; anything else is a ValueError."""
    return _parse_quantity(value, _DURATION, 'a duration such as "60 s", "15 min" or "72 h"')


def parse_size(value: Any) -> int:
    """Return the bytes in `"500 MB"`, `"10 GB"`, `"2 GiB"`; anything else is a ValueError."""
    return int(_parse_quantity(value, _SIZE, 'a size such as "500 MB" or "10 GB"'))


def _parse_quantity(value: Any, units: dict[str, Any], expected: str) -> float:
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", value)
        if match and match[2] in units and math.isfinite(number := float(match[1]) * float(units[match[2]])):
            return number
    raise ValueError(f"{value!r} is not {expected}")


def _ae_title(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("an AE Title of 1 to 16 characters was expected (PS3.5 §6.2)")
    if len(value.strip()) > 16:
        raise ValueError(f'"{value}" has {len(value.strip())} characters; an AE Title has at most 16 (PS3.5 §6.2)')
    if "\\" in value or not value.isascii() or not value.isprintable():
        raise ValueError(f'"{value}" has a character that an AE Title may not have (PS3.5 §6.2)')
    return value.strip()


def _network(value: Any) -> str:
    try:
        return str(ipaddress.ip_network(value, strict=False)) if "/" in value else str(ipaddress.ip_address(value))
    except (ValueError, TypeError):
        raise ValueError(f'{value!r} is not an address such as "10.1.2.3" or a network such as "10.1.2.0/24"') from None


def _bind(value: Any) -> str:
    if value == "localhost":
        return "127.0.0.1"
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        raise ValueError(f'{value!r} is not an address to listen on, such as "127.0.0.1" or "0.0.0.0"') from None


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ValueError(f"text in quotes was expected; {value!r} was found")
    return value.strip()


def _host(value: Any) -> str:
    host = _text(value)
    try:
        host.encode("idna")
    except UnicodeError:
        raise ValueError(f"{host[:64]!r} is no name of a host: a part of it is empty or too long") from None
    return host


def _port_of(url: str) -> int | None:
    """Return the port in `url`, None where there is none; a ValueError for what is none."""
    try:
        return urlsplit(url).port
    except ValueError:
        raise ValueError("the port is no number from 0 to 65535, or the brackets of an IPv6 address are open") from None


def _folder(value: Any) -> Path:
    return value if isinstance(value, Path) else Path(_text(value))


def _database_url(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"sqlite:///[^:\0].*|postgresql(\+psycopg)?://[^\0]*", value):
        _port_of(value)
        return value
    raise ValueError('"sqlite:///FILE" or "postgresql+psycopg://USER@HOST/NAME" was expected')


def broker_url(value: Any) -> str:
    """Return the URL of a broker that is used; a ValueError for one that loses tasks, or that anybody could ring."""
    if value == "embedded":
        return str(value)
    _port_of(value if isinstance(value, str) else "")
    parts = urlsplit(value if isinstance(value, str) else "")
    if parts.scheme not in _BROKERS:
        raise ValueError(f'"{parts.scheme}" is no broker wetread uses; "embedded" or one of {", ".join(_BROKERS)}')
    host = parts.hostname or "localhost"
    if parts.scheme in ("redis", "rediss") and not _is_this_machine(host) and not parts.password:
        raise ValueError(
            f"{host} is not this machine and the URL has no password; "
            "give the server one (requirepass or an ACL) and write rediss://:PASSWORD@HOST:PORT/0"
        )
    return str(value)


def _is_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or is_loopback(host)
    except ValueError:
        return False


def _device(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        return value
    raise ValueError(f'{value!r} is not "auto", "cpu", "cuda" or "cuda:0"')


def is_loopback(address: str) -> bool:
    """Say whether only this machine can reach `address`."""
    return ipaddress.ip_address(address).is_loopback


Duration = Annotated[float, BeforeValidator(parse_duration)]
Size = Annotated[int, BeforeValidator(parse_size)]
AETitle = Annotated[str, BeforeValidator(_ae_title)]
Bind = Annotated[str, BeforeValidator(_bind)]
Network = Annotated[str, BeforeValidator(_network)]
Device = Annotated[str, BeforeValidator(_device)]
Text = Annotated[str, BeforeValidator(_text)]
Host = Annotated[str, BeforeValidator(_host)]
Folder = Annotated[Path, BeforeValidator(_folder)]
DatabaseUrl = Annotated[str, BeforeValidator(_database_url)]
BrokerUrl = Annotated[str, BeforeValidator(broker_url)]
Port = Annotated[int, Field(ge=0, le=65535, strict=True)]
Weight = Annotated[float, Field(ge=0, le=1, strict=True)]
Count = Annotated[int, Field(ge=1, le=1000, strict=True)]
Flag = Annotated[bool, Field(strict=True)]
Check = Literal["lenient", "standard", "strict"]
ResultKind = Literal["SR", "SEG", "SC", "SALIENCY", "PM"]


def sqlite_below(base: Path, named: str) -> str:
    """Return the URL of the database that a relative one names; characters of a folder may mean something in it."""
    if not set(str(base)) & set("%?"):
        return f"sqlite:///{base / named}"
    from sqlalchemy import URL, make_url  # only here: it costs time that other configurations need not spend

    url = make_url(f"sqlite:///{named}")
    return URL.create("sqlite", database=str(base / str(url.database)), query=url.query).render_as_string()

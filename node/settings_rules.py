"""What settings must not say together: who could reach the node and with which proof, and what would never be read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from node.configfile import Key, line_of
from node.configvalues import is_loopback
from node.errors import ConfigError

if TYPE_CHECKING:
    from node.settings import Settings


def refuse_open_doors(path: Path, settings: Settings, lines: dict[Key, int]) -> None:
    """Raise `ConfigError` when a stranger could come in, a passcode would be overheard, or two doors share a port."""
    if settings.node.port == settings.web.port != 0 and _overlap(settings.node.bind, settings.web.bind):
        message = f"{settings.node.port} is also the port of [web]; each needs one of its own"
        raise ConfigError(path, line_of(("node", "port"), lines), f"[node] port: {message}")
    _refuse_half_of_tls(path, settings, lines)
    _refuse_too_few_places(path, settings, lines)
    if not is_loopback(settings.node.bind) and not settings.peer and settings.tls.ca is None:
        message = f"{settings.node.bind} is reachable from outside, so at least one [[peer]] must be named, or [tls] ca"
        raise ConfigError(path, line_of(("node", "bind"), lines), f"[node] bind: {message}")
    if not is_loopback(settings.web.bind) and settings.web.token_file is None:
        message = f"{settings.web.bind} is reachable from outside, so [web] token_file must name a file with the token"
        raise ConfigError(path, line_of(("web", "bind"), lines), f"[web] bind: {message}")


def refuse_endless(path: Path, settings: Settings, lines: dict[Key, int]) -> None:
    """Raise `ConfigError` when some study would never be complete, or an archive is asked that is not there."""
    rules, known = settings.completeness, ", ".join(settings.destination) or "none"
    longest = "at least quiet_period was expected, or no study could become complete by it"
    weights = "with quiet_weight it must be at least 1, or a study of which nothing else is known is never read"
    faults = (
        ("max_wait", rules.max_wait < rules.quiet_period, longest),
        ("wait_weight", rules.quiet_weight + rules.wait_weight < 1, weights),
        (
            "archive",
            rules.archive not in (None, *settings.destination),
            f'there is no [destination] "{rules.archive}"; there is {known}',
        ),
        ("fetch", rules.fetch != "no" and rules.archive is None, "archive must name the destination to fetch from"),
    )
    for key, wrong, message in faults:
        if wrong:
            raise ConfigError(path, line_of(("completeness", key), lines), f"[completeness] {key}: {message}")


def _refuse_half_of_tls(path: Path, settings: Settings, lines: dict[Key, int]) -> None:
    tls = settings.tls
    if (tls.certificate is None) != (tls.key is None):
        missing = "certificate" if tls.certificate is None else "key"
        raise ConfigError(
            path, line_of(("tls",), lines), f"[tls] {missing}: is missing; certificate and key go together"
        )
    if tls.ca is not None and tls.certificate is None:
        message = "[tls] ca: peers can only be asked for a certificate where we have one: name certificate and key"
        raise ConfigError(path, line_of(("tls", "ca"), lines), message)
    for index, peer in enumerate(settings.peer):
        if peer.passcode_file is None:
            continue
        if peer.user is None or tls.certificate is None:
            message = "a passcode needs a user, and goes over TLS alone: name [tls] certificate and key"
            line = line_of(("peer", index, "passcode_file"), lines)
            raise ConfigError(path, line, f'peer "{peer.name}": passcode_file: {message}')


def _refuse_too_few_places(path: Path, settings: Settings, lines: dict[Key, int]) -> None:
    reserved = sum(peer.reserved for peer in settings.peer)
    if reserved > settings.node.max_associations:
        message = f"[node] max_associations: {reserved} places are reserved for peers; at least so many were expected"
        raise ConfigError(path, line_of(("node", "max_associations"), lines), message)


def _overlap(one: str, other: str) -> bool:
    """Say whether a socket on `one` keeps another from `other`, on the same port."""
    return one == other or not {one, other}.isdisjoint(("0.0.0.0", "::"))  # noqa: S104 - compared, not bound

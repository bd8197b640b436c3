"""What a running node takes in when its configuration is read again, and what needs a restart; as data.

Nothing here changes anything: it compares two configurations, key by key.
"""

from __future__ import annotations

from node.settings import Settings

TAKEN_IN = frozenset(
    {
        "peer", "destination", "log", "ingest", "completeness", "worker", "node.max_associations",
        "node.max_associations_per_address", "spool.keep_images", "spool.keep_results",
    }
)  # fmt: skip
"""Sections and keys of wetread.toml that a running node takes in anew, besides all of routes.toml."""
FIXED = frozenset({"completeness.late_instances", "completeness.archive", "completeness.fetch", "worker.models"})
"""Keys of such sections that it does not."""
READ_BY_WORKERS = ("destination", "worker", "completeness", "log")
"""Sections that a worker reads, when it starts."""


def changed(old: Settings, new: Settings) -> list[str]:
    """Return the keys that differ, as `section.key`; of peers and destinations the section alone."""
    found: list[str] = []
    for section in Settings.model_fields:
        before, after = getattr(old, section), getattr(new, section)
        if before == after:
            continue
        keys = getattr(type(before), "model_fields", ())
        found += [f"{section}.{key}" for key in keys if getattr(before, key) != getattr(after, key)] or [section]
    return found


def needs_restart(keys: list[str]) -> list[str]:
    """Return those of `keys` that only a new process takes in."""
    return [key for key in keys if key in FIXED or TAKEN_IN.isdisjoint((key, key.partition(".")[0]))]


def concerns_workers(keys: list[str]) -> list[str]:
    """Return those of `keys` that workers read too."""
    return [key for key in keys if key.partition(".")[0] in READ_BY_WORKERS]

"""The pages of the Model Bundles: what each reads and says, its figures, and its card as its authors wrote it.

A card is text from outside: it becomes HTML without any HTML of its own, and links only where a page can lead.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

from node import bundles, cards
from node.bundles import Bundle
from node.errors import BundleError

_PICTURE = re.compile(r"[\w-][\w.-]{0,99}\.(?:png|jpe?g)", re.ASCII)


def overview(folder: Path | None) -> list[dict[str, Any]]:
    """Return every bundle with what it reads and says, by name."""
    return [_row(bundle) for bundle in bundles.available(*_folders(folder))]


def show(folder: Path | None, name: str) -> dict[str, Any] | None:
    """Return one bundle with its figures and its card as HTML, or None where there is none of this name."""
    bundle = _find(folder, name)
    if bundle is None:
        return None
    found = _metrics(bundle)
    return _row(bundle) | {
        "digest": bundle.digest,
        "intended_use": str(bundle.metadata.get("intended_use", "")),
        "figures": cards.figures(found),
        "is_of_other_weights": cards.is_of_other_weights(found, bundle),
        "card": render(cards.card(bundle), f"/models/{bundle.name}/"),
    }


def picture(folder: Path | None, name: str, file: str) -> Path | None:
    """Return a picture that lies beside the card of a bundle, or None."""
    bundle = _find(folder, name)
    if bundle is None or not _PICTURE.fullmatch(file):
        return None
    path = bundle.folder / "docs" / file
    return path if path.is_file() and not path.is_symlink() else None


def _find(folder: Path | None, name: str) -> Bundle | None:
    found = (bundle for bundle in bundles.available(*_folders(folder)) if bundle.name == name)
    return next(found, None)


def _folders(folder: Path | None) -> tuple[Path, ...]:
    return (folder,) if folder else ()


def _row(bundle: Bundle) -> dict[str, Any]:
    says = [s.label for s in bundle.dicom.segment] or [f.label for f in bundle.dicom.finding]
    return {
        "name": bundle.name,
        "version": bundle.version,
        "kind": bundle.dicom.kind,
        "task": str(bundle.metadata.get("task", "")),
        "says": ", ".join(says),
        "measured": bool(cards.figures(_metrics(bundle))),
    }


def _metrics(bundle: Bundle) -> Mapping[str, Any]:
    """Return the figures, none where their file is broken: what reads a bundle does not need them."""
    try:
        return cards.metrics(bundle)
    except (BundleError, OSError):
        return {}


def render(markdown: str, base: str) -> str:
    """Return `markdown` as HTML; pictures beside the card are asked for below `base`, other places lead nowhere."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(markdown)
    for token in _walk(tokens):
        if token.type == "image":
            source = str(token.attrs.get("src", ""))
            token.attrs["src"] = base + source if _PICTURE.fullmatch(source) else ""
        elif token.type == "link_open" and not re.match(r"https?://|#", str(token.attrs.get("href", ""))):
            del token.attrs["href"]
        elif token.type == "heading_open" or token.type == "heading_close":
            token.tag = f"h{min(int(token.tag[1]) + 1, 6)}"  # the page has its own h1
    return str(parser.renderer.render(tokens, parser.options, {}))


def _walk(tokens: Iterable[Token]) -> Iterable[Token]:
    for token in tokens:
        yield token
        yield from _walk(token.children or ())

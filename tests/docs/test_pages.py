from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from node import conditions
from node.bundles import DicomConfig
from node.cli import wetread

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def test_the_example_of_a_bundle_is_one() -> None:
    page = (ROOT / "docs" / "bundles.md").read_text(encoding="utf-8")
    first, *others = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    parsed = DicomConfig.model_validate(tomllib.loads(first))
    conditions.check(parsed.series)
    head = first[: first.index("[[segment]]")]
    kinds = set()
    for example in others:
        told = dict(re.findall(r"(kind|dimensions) = (\S+?)(?:,|\n)", example.partition("[")[0]))
        begin = re.sub(r"(?m)^(kind|dimensions) = \S+", lambda found: f"{found[1]} = {told[found[1]]}", head)  # noqa: B023
        plain, table, rest = example.partition("\n[")  # keys of no table stand before those of the head
        kinds.add(DicomConfig.model_validate(tomllib.loads(f"{plain}\n{begin}\n{table}{rest}")).kind)
    assert kinds == {"segmentation", "classification", "detection"}


def test_the_map_of_the_tree_names_what_is_there() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    tree = re.search(r"```\n(node/.*?)```", page, re.DOTALL)
    assert tree
    folders = {p.name for top in ("node", "workers") for p in (ROOT / top).iterdir() if (p / "__init__.py").is_file()}
    assert folders <= set(re.findall(r"(?m)^  (\w+)/", tree[1]))
    flat = {p.stem for p in (ROOT / "node").glob("*.py")} - {"__init__", "daemon", "check", "demo"}
    assert {name for name in flat if not name.startswith("cli")} <= set(re.findall(r"\w+", tree[1]))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_and_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http|#)([^)#]+)", text):
        assert (page.parent / target).exists(), target
    for named in re.findall(r"`((?:node|workers|tests|config|docker|docs|models)/[\w./-]+)`", text):
        assert (ROOT / named).exists(), named


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_exist(page: Path) -> None:
    for words in re.findall(r"`wetread ([a-z]+(?: [a-z]+)?)", page.read_text(encoding="utf-8")):
        first, *rest = words.split()
        assert first in wetread.commands, f"wetread {first}"
        commands = getattr(wetread.commands[first], "commands", None)
        if commands and rest:
            assert rest[0] in commands, f"wetread {words}"


def test_every_command_is_in_the_readme_or_a_page() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    for name in wetread.commands:
        assert f"wetread {name}" in text, name

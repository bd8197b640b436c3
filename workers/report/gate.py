"""The gate: what must be true of a set of Evidence Documents before it is filed.

The rules are the acceptance checklist of docs/conformance.md; each is a generator of complaints about one case,
and none trusts the code that built the objects. The first complaint stops the set.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from node.errors import NonConformant
from node.findings import Reading, Volume
from workers.report import rules_common, rules_pm, rules_seg, rules_sr
from workers.report.case import Case, Rule
from workers.report.context import Context, EvidenceDocument

RULES: tuple[Rule, ...] = (*rules_common.RULES, *rules_seg.RULES, *rules_pm.RULES, *rules_sr.RULES)


def check(documents: Sequence[EvidenceDocument], reading: Reading, volumes: Sequence[Volume], context: Context) -> None:
    """Check the whole set; raise `NonConformant` that names the rule and what breaks it."""
    case = Case(tuple(documents), reading, tuple(volumes), context, context.headers)
    for rule in RULES:
        for complaint in rule.check(case):
            raise NonConformant(_message(case, rule, complaint))


def complaints(case: Case) -> list[str]:
    """Return every complaint, each with its rule: what a test or a bundle's author wants to see at once."""
    found = chain.from_iterable(((rule, text) for text in rule.check(case)) for rule in RULES)
    return [f"{rule.name}: {text}" for rule, text in found]


def _message(case: Case, rule: Rule, complaint: str) -> str:
    algorithm = case.reading.algorithm
    return (
        f"The results of {algorithm.name} {algorithm.version} for series {case.headers[0].SeriesInstanceUID} break "
        f"rule {rule.name} ({rule.statement}): {complaint}. Nothing of this reading was filed. "
        "This is a fault of the node or of the bundle: report it with this line."
    )

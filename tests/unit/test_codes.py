import pytest
from pydicom.sr._concepts_dict import concepts

from node import codes
from node.codes import Code

OTHER_MEANINGS = {
    # pydicom's dictionary leaves these out, or has only the fully specified name of SNOMED CT
    codes.FINDING_CATEGORY: "Findings category type (qualifier value)",
    codes.CLINICAL_FINDING: "Clinical finding (finding)",
    codes.SOURCE: "Source (attribute)",
    codes.SQUARE_CENTIMETER: "Centimeter**2",
}
OURS = {code for code in codes.ALL if code.scheme == codes.PRIVATE_SCHEME}
UNKNOWN_TO_PYDICOM = {codes.PRESENCE, codes.MILLILITER, codes.PIXELS, codes.ENGLISH}


@pytest.mark.parametrize("code", sorted(codes.ALL - OURS, key=lambda c: (c.scheme, c.value)), ids=lambda c: c.meaning)
def test_codes_are_those_of_the_standard(code: Code) -> None:
    known = {
        meaning.lower()
        for by_value in concepts.get(code.scheme, {}).values()
        for value, (meaning, _) in by_value.items()
        if value == code.value
    }
    if code in UNKNOWN_TO_PYDICOM:
        assert not known, "take it off the list"
    else:
        assert OTHER_MEANINGS.get(code, code.meaning).lower() in known


def test_no_code_is_there_twice_with_two_meanings() -> None:
    seen: dict[tuple[str, str], str] = {}
    for code in codes.ALL:
        assert seen.setdefault((code.value, code.scheme), code.meaning) == code.meaning


def test_only_the_allowed_schemes_are_used() -> None:
    assert {code.scheme for code in codes.ALL} <= codes.ALLOWED_SCHEMES


def test_derived_names_fit_a_code_sequence_and_are_stable() -> None:
    finding = Code("233604007", "SCT", "Pneumonia")
    name = codes.probability_of(finding, "Pneumonia " * 10, calibrated=True)
    assert len(name.value) <= 16
    assert len(name.meaning) <= 64
    assert name.scheme == codes.PRIVATE_SCHEME
    assert name == codes.probability_of(finding, "Pneumonia " * 10, calibrated=True)
    assert name != codes.probability_of(finding, "Pneumonia " * 10, calibrated=False)
    assert codes.measured_on(codes.AREA, finding, "Left lung").meaning == "AI: Left lung area"

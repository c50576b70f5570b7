"""The judgement as JUnit XML: valid for any text, one case a budget."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest
from made_results import ALL, result

from instar.gate import junit


def suite(name: str) -> ET.Element:
    found = ET.fromstring(junit.render(ALL[name]()).encode()).find("testsuite")
    assert found is not None
    return found


@pytest.mark.parametrize("name", list(ALL))
def test_it_is_xml_and_counts_its_cases(name: str) -> None:
    found = suite(name)
    cases = found.findall("testcase")
    assert found.get("tests") == str(len(cases))
    assert found.get("failures") == str(len(found.findall("testcase/failure")))
    assert found.get("errors") == str(len(found.findall("testcase/error")))
    assert re.sub(r"[\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "", junit.render(ALL[name]())) == ""


def test_a_case_for_every_budget_with_its_decision() -> None:
    made, found = result("fail"), suite("fail")
    cases = found.findall("testcase")
    assert len(cases) == len(made.tests)
    for case, test in zip(cases, made.tests, strict=True):
        failure = case.find("failure")
        assert (failure is not None) == (test.decision == "fail")
        if failure is not None:
            assert failure.get("message") == test.words
            assert (failure.text or "").startswith(test.words)
    error = suite("undecided").find("testcase/error")
    assert error is not None
    assert error.get("type") == "undecided"


def test_the_answer_is_there_even_if_no_budget_carries_it() -> None:
    passed = [t for t in result("pass").tests if t.decision == "pass"]
    text = junit.render(result("undecided", tests=passed, reasons=["3 items without an answer"]))
    error = ET.fromstring(text.encode()).find("testsuite/testcase[@name='decision']/error")
    assert error is not None
    assert error.text == "3 items without an answer"
    assert suite("plain").get("tests") == "1"


def test_properties_and_broken_items() -> None:
    found = suite("fail")
    values = {p.get("name"): p.get("value") for p in found.findall("properties/property")}
    assert values["decision"] == "fail"
    assert values["nfr"] == "4.9 % (4.2 … 5.6 %)"
    assert values["items"] == "3080"
    out = found.findtext("system-out") or ""
    assert "banking-00000: asked: I still have not received my new card" in out
    assert len((suite("large").findtext("system-out") or "").splitlines()) < 230

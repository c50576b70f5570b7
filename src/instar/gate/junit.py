"""The judgement as JUnit XML, which continuous integration shows beside the other tests."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from instar.gate import shown
from instar.gate.result import Decision, Result
from instar.report import units

_MOST_ITEMS = 200


def render(result: Result) -> str:
    """One test suite with one test case for each budget. A fail is a failure, and undecided an error of type "undecided".

    Where the answer is in no budget (missing answers keep a change from passing), a test case of its own carries it.
    """
    suite = ET.Element("testsuite", name="instar gate", time=f"{result.seconds:.3f}")
    if result.started:
        suite.set("timestamp", shown.line(result.started, 40))
    properties = ET.SubElement(suite, "properties")
    for name, value in _properties(result):
        ET.SubElement(properties, "property", name=name, value=value)
    decisions: list[Decision] = [test.decision for test in result.tests]
    for test in result.tests:
        case = _case(suite, f"{shown.line(test.scope, 200)}: {shown.asked(test, result)}")
        _say(case, test.decision, shown.line(test.words, 1000), [r for r in result.reasons if r.startswith(test.words)])
    if result.decision not in decisions:
        _say(_case(suite, "decision"), result.decision, shown.headline(result), result.reasons[:20])
        decisions.append(result.decision)
    ET.SubElement(suite, "system-out").text = _broken(result)
    failures, errors = decisions.count("fail"), decisions.count("undecided")
    for name, count in (("tests", len(decisions)), ("failures", failures), ("errors", errors), ("skipped", 0)):
        suite.set(name, str(count))
    suites = ET.Element("testsuites")
    suites.append(suite)
    ET.indent(suites)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(suites, encoding="unicode")}\n'


def _case(suite: ET.Element, name: str) -> ET.Element:
    return ET.SubElement(suite, "testcase", classname="instar.gate", name=name, time="0")


def _say(case: ET.Element, decision: Decision, message: str, reasons: list[str]) -> None:
    if decision == "pass":
        return
    found = ET.SubElement(case, "failure" if decision == "fail" else "error", message=message, type=decision)
    found.text = "\n".join(shown.line(text, 1000) for text in reasons)


def _properties(result: Result) -> list[tuple[str, str]]:
    old, new = result.old, result.new
    return [
        ("decision", result.decision),
        ("headline", shown.headline(result)),
        ("old", shown.line(old.name)),
        ("new", shown.line(new.name)),
        ("items", str(result.items)),
        ("missing", str(result.missing)),
        ("metric", shown.line(result.metric)),
        *((shown.line(m.id, 80), shown.around(m.figure, m.unit)) for m in result.measures),
        *(("caution", shown.line(text, 500)) for text in result.cautions),
        ("command", shown.line(result.command, 2000)),
    ]


def _broken(result: Result) -> str:
    """The broken items by group as plain text."""
    lines = [f"{shown.moved(result)}."]
    left = _MOST_ITEMS
    for group in result.broken:
        lines += ["", f"{shown.line(group.title, 120)} ({units.number(group.size)} items)"]
        for item in group.items[:left]:
            asked = f" asked: {shown.line(item.input, 300)};" if item.input is not None else ""
            right = f" right is: {shown.line(item.label, 200)};" if item.label is not None else ""
            lines.append(
                f"  {shown.line(item.id, 80)}:{asked}{right} before: {shown.line(item.before)}; now: {shown.line(item.after)}"
            )
        left -= len(group.items[:left])
    return "\n".join(lines)

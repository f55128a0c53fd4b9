"""Reads a JUnit report by the junitparser package and prints what it found, a line for each case."""

import sys

from junitparser.xunit2 import JUnitXml

report = JUnitXml.fromfile(sys.argv[1])
counted = {"tests": 0, "failures": 0, "errors": 0}
for suite in report:
    cases = list(suite)
    assert suite.tests == len(cases), suite
    skipped = sum(case.is_skipped for case in cases)
    assert suite.skipped == skipped, suite
    for name in counted:
        counted[name] += getattr(suite, name)
    for case in cases:
        assert case.classname == suite.name, case
        results = [f"{type(result).__name__} {result.type}: {result.message}" for result in case.result]
        earlier = [*case.rerun_failures(), *case.flaky_failures()]
        results += [f"{type(result).__name__} {result.type}: {result.message}" for result in earlier]
        print(" | ".join([case.name, *results]))
for name, value in counted.items():
    assert getattr(report, name) == value, (name, value)
print("driven")

"""The stored faults of `tests/mutants.py` still apply to the code and leave it code."""

import ast

import pytest

from architecture.repository import ROOT
from mutants import read_faults

FAULTS = read_faults()


def test_faults_are_stored():
    assert len(FAULTS) == len({(fault.file, fault.find, fault.replace) for fault in FAULTS}) > 0


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_applies_once_and_its_tests_exist(fault):
    text = (ROOT / fault.file).read_text(encoding="utf-8")
    faulty = fault.apply_to(text)
    assert faulty != text
    ast.parse(faulty)
    for test in fault.tests:
        assert (ROOT / test.split("::")[0]).is_file(), test

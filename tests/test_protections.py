"""The list of protections is complete and up to date; `make protections` shows that each is noticed."""

import ast
import functools
from collections import Counter

import pytest

from tests.protections.catalogue import FAULTS, REASONS, ROOT, read

PROTECTIONS = list(read())


def test_every_fault_and_every_reason_is_guarded():
    guarded = {name for protection in PROTECTIONS for name in protection.guards}
    assert sorted((FAULTS.keys() | REASONS) - guarded) == []


def test_no_protection_guards_what_nobody_knows():
    guarded = {name for protection in PROTECTIONS for name in protection.guards}
    assert sorted(guarded - FAULTS.keys() - REASONS) == []


def test_names_are_not_used_twice():
    assert [name for name, count in Counter(one.name for one in PROTECTIONS).items() if count > 1] == []


@pytest.mark.parametrize("protection", PROTECTIONS, ids=lambda protection: protection.name)
def test_a_protection_stands_where_it_is_said_to_and_its_test_exists(protection):
    assert (ROOT / protection.file).read_text().count(protection.old) == 1
    assert protection.new != protection.old
    path, _, function = protection.test.partition("::")
    assert function.partition("[")[0] in names_of_tests(path)


@functools.cache
def names_of_tests(path):
    """Returns the names of the test functions of a file."""
    tree = ast.parse((ROOT / path).read_text())
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return {function.name for function in functions if function.name.startswith("test_")}

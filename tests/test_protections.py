"""The list of protections is complete and up to date; `make protections` shows that each is noticed."""

import ast
import functools
from collections import Counter

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


def test_a_protection_stands_where_it_is_said_to():
    wrong = []
    for protection in PROTECTIONS:
        count = text_of(protection.file).count(protection.old)
        if count != 1:
            wrong.append(f"{protection.name}: stands {count} times in {protection.file}, expected once")
        elif protection.new == protection.old:
            wrong.append(f"{protection.name}: taking it out changes nothing")
    assert not wrong, "\n".join(wrong)


def test_the_test_of_a_protection_exists():
    missing = []
    for protection in PROTECTIONS:
        path, _, function = protection.test.partition("::")
        if function.partition("[")[0] not in names_of_tests(path):
            missing.append(f"{protection.name}: there is no {protection.test}")
    assert not missing, "\n".join(missing)


@functools.cache
def text_of(path):
    return (ROOT / path).read_text()


@functools.cache
def names_of_tests(path):
    """Returns the names of the test functions of a file."""
    body = ast.parse(text_of(path)).body
    functions = (node for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return {function.name for function in functions if function.name.startswith("test_")}

"""The collector looks at nothing of what was imported."""

import gc

import pytest

from service.common.collector import sparing_imports


def test_what_is_made_inside_is_never_looked_at():
    with sparing_imports():
        assert not gc.isenabled()
        made = [[number] for number in range(1000)]
    assert gc.isenabled()
    seen = {id(thing) for thing in gc.get_objects()}
    assert not seen & {id(thing) for thing in made}


def test_an_import_that_fails_leaves_the_collector_on():
    with pytest.raises(ModuleNotFoundError), sparing_imports():
        raise ModuleNotFoundError
    assert gc.isenabled()

"""The options that editors complete are those that the clients take."""

import inspect

import pytest

from holdfast.client.aio import AsyncClient, ClientOptions
from holdfast.client.batching import batch_message
from holdfast.client.copy_requests import ListOptions, list_request
from holdfast.client.generated import GenerateOptions, template
from holdfast.client.options import BatchOptions, StepBatchOptions, StepOptions
from holdfast.client.session import AsyncSession
from holdfast.client.watching import WatchOptions, watch_request


def keywords(function, *without):
    parameters = inspect.signature(function).parameters.values()
    return {one.name for one in parameters if one.kind is one.KEYWORD_ONLY} - set(without)


@pytest.mark.parametrize(
    ("options", "taken"),
    [
        (ClientOptions, keywords(AsyncClient)),
        (StepOptions, keywords(AsyncSession.step, "position", "cursor")),
        (StepOptions, keywords(AsyncSession.stream, "chunk", "max_in_flight")),
        (GenerateOptions, keywords(template)),
        (ListOptions, keywords(list_request)),
        (WatchOptions, keywords(watch_request)),
        (BatchOptions, keywords(batch_message, "model", "cursors")),
        (StepBatchOptions, keywords(batch_message, "model") | keywords(AsyncClient.step_batch)),
    ],
)
def test_typed_options_are_those_that_are_taken(options, taken):
    assert options.__optional_keys__ == taken


@pytest.mark.parametrize(
    ("wrong", "text"),
    [({"prefix": 5}, "a prefix is 5, expected str"), ({"model": None}, "a model is None, expected str")],
)
def test_a_list_of_what_is_no_text_is_refused(wrong, text):
    with pytest.raises(TypeError, match=text):
        list_request(**wrong)

"""A fetch of the next part of a source: begun, and collected once it is done."""

import asyncio
from typing import Any, Final

END: Final = object()
"""Comes after the last part of a source."""


class Fetching:
    """What sources have in common; see `holdfast.client.sources.Source`."""

    def __init__(self) -> None:
        self._fetch: asyncio.Future[Any] | None = None
        self.is_empty = False

    @property
    def uncollected(self) -> "asyncio.Future[Any] | None":
        """The fetch that was begun and not collected."""
        return self._fetch

    def collect(self) -> Any:
        """Returns what a fetch that is done has brought; raises what the source raised."""
        assert self._fetch is not None, "bug: nothing was fetched"
        fetch, self._fetch = self._fetch, None
        part = fetch.result()
        self.is_empty = part is END
        return part

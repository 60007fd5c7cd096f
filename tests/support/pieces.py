"""What a stream makes of its source, without a session."""

import asyncio

from holdfast.client.sources import check_options, open_source
from holdfast.client.thread_source import END
from holdfast.client.tokens import split


async def pieces(tokens, size):
    """Yields the chunks that a source is cut up into."""
    check_options(size, None)
    source = open_source(tokens, size)
    try:
        while True:
            await asyncio.wait({source.fetch()})
            part = source.collect()
            if part is END:
                return
            for piece in split(part, size):
                yield piece
    finally:
        await source.leave()

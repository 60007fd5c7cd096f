"""Streams sessions of one network to a server, in chunks of one size, many at a time."""

import asyncio

import numpy as np

import holdfast

TOLERANCE = 1e-5


async def outputs_of(address, model, tokens, chunk, *, name="s", half_way=None):
    """Returns what a server gives for tokens (B, T, width), a session for each row: (B, T, ...).

    Args:
        address: Of the server.
        model: Its name there.
        tokens: float32.
        chunk: Tokens in a request.
        name: Of the sessions, with a number behind it.
        half_way: Called, and waited for, when the first session has half its replies.
    """

    async def stream(client, row):
        session = await client.open_session(f"{name}-{row}", model=model, must_be_new=True)
        parts = []
        async for reply in session.stream(tokens[row], chunk=chunk, outputs="y"):
            parts.append(reply.outputs["y"])
            if row == 0 and half_way is not None and reply.position * 2 // tokens.shape[1] == 1:
                await half_way.once()
        await session.delete()
        return np.concatenate(parts)

    async with holdfast.AsyncClient(address, timeout_s=60) as client:
        return np.stack(await asyncio.gather(*(stream(client, row) for row in range(len(tokens)))))


def difference(given, expected):
    """Returns the largest difference, relative above magnitude 1."""
    assert given.shape == expected.shape
    return float((np.abs(given - expected) / np.maximum(1.0, np.abs(expected))).max())


class Kill:
    """Kills a server once, and starts it again at its address.

    Attributes:
        server: The one that runs.
    """

    def __init__(self, server, start):
        self.server = server
        self.count = 0
        self._start = start

    async def once(self):
        """Kills the server if it was not killed yet."""
        if not self.count:
            self.count += 1
            self.server.kill()
            self.server = await asyncio.to_thread(self._start)

"""Records as entries of a Redis stream, each added together with a mark that says so."""

from collections.abc import Callable, Sequence
from functools import partial

from redis import exceptions

from holdfast.pipe.places import Place, place_of
from holdfast.pipe.records import Written, to_texts
from holdfast.pipe.redis_link import Insistence, StreamAddress
from holdfast.pipe.sinks import SinkFailed

MARKS_LAST_S = 30 * 86_400
"""A mark is needed until its event is acknowledged, so a pipe may be out of service for so long."""

_ADD = """
local at = 2
for i = 2, #KEYS do
  local place, fields = ARGV[at], tonumber(ARGV[at + 1])
  local mark = redis.call('GET', KEYS[i])
  if not mark or mark < place then
    redis.call('XADD', KEYS[1], '*', unpack(ARGV, at + 2, at + 1 + fields))
    redis.call('SET', KEYS[i], place, 'EX', ARGV[1])
  end
  at = at + 2 + fields
end
"""
"""KEYS: the stream, and a mark for each record. ARGV: seconds that a mark lasts; of each record its place,
the number of what follows, names and values. A place has one length, so it is compared as text."""

_AT_ONCE = 256


class StreamSink:
    """A stream, and beside it a mark for each session: the place of its last record.

    Args:
        address: Of the stream.
        source_id: Marks are of this source.
        say: Prints a line.
    """

    def __init__(self, address: StreamAddress, source_id: str, say: Callable[[str], None]) -> None:
        self._address = address
        self._marks = address.tagged(f"written:{source_id}:")
        self._client = address.connect()
        self._insist = Insistence(address.shown, say)
        self._add = self._client.register_script(_ADD)

    async def last(self, key: str) -> Place | None:
        """Does what `Sink.last` says."""
        mark = await self._insist(lambda: self._client.get(self._marks + key))
        return place_of(mark.decode()) if isinstance(mark, bytes) else None

    async def write(self, records: Sequence[Written]) -> None:
        """Does what `Sink.write` says. May be repeated: the marks tell what was written."""
        for start in range(0, len(records), _AT_ONCE):
            keys, arguments = [self._address.stream], [str(MARKS_LAST_S)]
            for key, place, record in records[start : start + _AT_ONCE]:
                keys.append(self._marks + key)
                texts = to_texts(record)
                arguments += (place.sortable, str(2 * len(texts)))
                for name, text in texts.items():
                    arguments += (name, text)
            data = [argument.encode(errors="backslashreplace") for argument in arguments]
            try:
                await self._insist(partial(self._add, keys, data))
            except exceptions.RedisError as error:
                raise SinkFailed(f"{self._address.shown}: {error}") from error

    async def close(self) -> None:
        """Closes the connection."""
        await self._client.aclose()

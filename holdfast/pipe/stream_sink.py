"""Records as entries of a Redis stream, each added together with a mark that says so."""

from collections.abc import Callable, Sequence
from functools import partial

from holdfast.pipe.places import Place, place_of
from holdfast.pipe.records import Written, to_texts
from holdfast.pipe.redis_link import Insistence, StreamAddress

MARKS_LAST_S = 30 * 86_400
"""A mark is needed until its event is acknowledged, so a pipe may be out of service for so long."""

_ADD = """
local columns = tonumber(ARGV[2])
local fields, at = {}, 3 + columns
for column = 1, columns do fields[2 * column - 1] = ARGV[2 + column] end
for i = 2, #KEYS do
  local place, mark = ARGV[at], redis.call('GET', KEYS[i])
  if not mark or mark < place then
    for column = 1, columns do fields[2 * column] = ARGV[at + column] end
    redis.call('XADD', KEYS[1], '*', unpack(fields))
    redis.call('SET', KEYS[i], place, 'EX', ARGV[1])
  end
  at = at + 1 + columns
end
"""
"""KEYS: the stream, and a mark for each record. ARGV: seconds that a mark lasts; the number of columns and
their names; of each record its place and the values. A place has one length: it is compared as text."""

_AT_ONCE = 256


class StreamSink:
    """A stream, and beside it a mark for each session: the place of its last record.

    Args:
        address: Of the stream.
        columns: Of every record.
        source_id: Marks are of this source.
        say: Prints a line.
    """

    def __init__(
        self,
        address: StreamAddress,
        columns: Sequence[str],
        source_id: str,
        say: Callable[[str], None],
    ) -> None:
        self._columns = columns
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
            keys = [self._address.stream]
            arguments = [str(MARKS_LAST_S), str(len(self._columns)), *self._columns]
            for key, place, record in records[start : start + _AT_ONCE]:
                keys.append(self._marks + key)
                arguments.append(place.sortable)
                arguments += to_texts(record[column] for column in self._columns)
            data = [argument.encode(errors="backslashreplace") for argument in arguments]
            await self._insist(partial(self._add, keys, data))

    async def close(self) -> None:
        """Closes the connection."""
        await self._client.aclose()

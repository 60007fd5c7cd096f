-- Reads records together with the cursors of their sessions.
--
-- KEYS: one per session. Returns two entries each: the record, or nil, and the cursor, "" if there is none, or
-- the store's error. A key that holds something else is read as nothing, as MGET does.
local read = {}
for i, key in ipairs(KEYS) do
  local record = redis.pcall('GET', key)
  if type(record) ~= 'string' then
    record = false
  end
  local cursor = record and string.byte(record, 40) == 1 and redis.pcall('HGET', key .. ':beside', 'cursor')
  read[2 * i - 1] = record
  read[2 * i] = cursor or ''
end
return read

-- Keeps a record as a checkpoint beside it, if it still has the stamp that was looked at.
--
-- KEYS: the record, and its sibling. ARGV: the stamp (bytes 16..39 of the record), the field of the checkpoint,
-- and the most checkpoints that a session may have.
-- Returns "found" and what is stored, nil if nothing, where the stamp is another one; "full" where there would be too
-- many; else "saved", the bytes of the checkpoint and its beginning, as `list_checkpoints.lua` gives it.
local key, sibling, field = KEYS[1], KEYS[2], ARGV[2]
local record = redis.call('GET', key)
if not record or string.sub(record, 17, 39) ~= string.sub(ARGV[1], 1, 23) then
  return {'found', record}
end
if redis.call('HEXISTS', sibling, field) == 0 then
  local count = redis.call('HLEN', sibling) - redis.call('HEXISTS', sibling, 'cursor')
  if count >= tonumber(ARGV[3]) then
    return {'full'}
  end
end
local now = redis.call('TIME')
local saved_ms = now[1] * 1000 + math.floor(now[2] / 1000)
local cursor = redis.call('HGET', sibling, 'cursor') or ''
local kept = struct.pack('<I8I2', saved_ms, #cursor) .. cursor .. record
redis.call('HSET', sibling, field, kept)
redis.call('SETRANGE', key, 39, '\1')
local left_ms = redis.call('PTTL', key)
if left_ms > 0 then
  redis.call('PEXPIRE', sibling, left_ms)
else
  redis.call('PERSIST', sibling)
end
return {'saved', #kept, string.sub(kept, 1, 50 + #cursor)}

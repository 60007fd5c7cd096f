-- Replaces records whose stamp is the expected one; the others are left alone.
--
-- KEYS: one per session. ARGV: the time to live in milliseconds ("0": for ever), then two per key: the
-- expected stamp (bytes 16..39 of the record; 24 zeros for a key that must not exist) and the new record.
-- Where cursors are stored as well there are three per key; the third is "" where the stored cursor stays,
-- else "=" and the new cursor.
-- Returns what was not written, three entries each: number of the key from 1, "found" and the value found
-- (nil if none), or "error" and the store's error. All written is an empty list.
--
-- Byte 39, the last one of the stamp, is 0 as it is sent, and 1 in the store where the session may have a
-- sibling, the hash beside its record. Only the scripts write it, so who has the record in memory need not know
-- of the sibling; and without one the stamp that is found is the very string that is expected.
local nothing = string.rep('\0', 24)
local byte, sub, try = string.byte, string.sub, redis.pcall
local ttl = ARGV[1]
local width = (#ARGV - 1) / #KEYS
local refused = {}
local function refuse(i, kind, detail)
  refused[#refused + 1] = i
  refused[#refused + 1] = kind
  refused[#refused + 1] = detail
end
local function write(i, key, record)
  local done
  if ttl == '0' then
    done = try('SET', key, record)
  else
    done = try('SET', key, record, 'PX', ttl)
  end
  if done['err'] then
    refuse(i, 'error', done['err'])
    return false
  end
  return true
end
local function live_as_long(sibling)
  if ttl == '0' then
    try('PERSIST', sibling)
  else
    try('PEXPIRE', sibling, ttl) -- where it is out of reach it follows with the next record
  end
end
-- Writes a record of a session that has a sibling, or gets one with its cursor. The cursor comes first: if the
-- store refuses it, nothing is written, and after it no record is refused.
local function write_beside(i, key, record, cursor)
  local sibling = key .. ':beside'
  if cursor ~= '' then
    local done = try('HSET', sibling, 'cursor', sub(cursor, 2))
    if type(done) == 'table' then
      return refuse(i, 'error', done['err'])
    end
  end
  if write(i, key, sub(record, 1, 39) .. '\1' .. sub(record, 41)) then
    live_as_long(sibling)
  end
end
-- Writes a record with which something beside it has to go: what an earlier session of this key has left
-- there, all of it, or the cursor.
local function write_and_clear(i, key, record, is_new, is_tombstone, cursor)
  local sibling = key .. ':beside'
  -- looked at first: while its slot moves it may be out of reach, and then nothing may be written
  local is_there = try('EXISTS', sibling)
  if type(is_there) == 'table' then
    return refuse(i, 'error', is_there['err'])
  end
  if not write(i, key, record) then
    return
  end
  if is_there == 1 and (is_new or is_tombstone) then
    redis.call('UNLINK', sibling)
  end
  if is_tombstone or (is_new and #cursor < 2) then
    return
  end
  if cursor == '=' then
    redis.call('HDEL', sibling, 'cursor')
  else
    redis.call('HSET', sibling, 'cursor', sub(cursor, 2))
  end
  redis.call('SETRANGE', key, 39, '\1')
  live_as_long(sibling)
end
for i, key in ipairs(KEYS) do
  local place = width * (i - 1) + 2
  local expected, record = ARGV[place], ARGV[place + 1]
  local cursor = width == 3 and ARGV[place + 2] or ''
  local is_new = expected == nothing
  local found, matches, is_flagged
  if is_new then -- whatever is there is left as found, an empty value too
    found = try('GET', key)
    matches = not found
  else
    found = try('GETRANGE', key, 16, 39)
    matches = found == expected
    if not matches and type(found) == 'string' and byte(found, 24) == 1 then
      is_flagged = sub(found, 1, 23) == sub(expected, 1, 23)
      matches = is_flagged
    end
  end
  if type(found) == 'table' then
    refuse(i, 'error', found['err'])
  elseif not matches then
    refuse(i, 'found', redis.call('GET', key))
  elseif not (is_new or is_flagged or cursor ~= '') then
    write(i, key, record)
  else
    local is_tombstone = (byte(record, 32) or 0) >= 128 -- its position is negative
    if is_new or is_tombstone or cursor == '=' then
      write_and_clear(i, key, record, is_new, is_tombstone, cursor)
    else
      write_beside(i, key, record, cursor)
    end
  end
end
return refused

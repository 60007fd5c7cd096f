-- Replaces records whose stamp is the expected one; the others are left alone.
--
-- KEYS: one per session. ARGV: the time to live in milliseconds ("0": for ever), then two per key: the
-- expected stamp (bytes 16..39 of the record; 24 zeros for a key that must not exist) and the new record.
-- Returns what was not written, three entries each: number of the key from 1, "found" and the value found
-- (nil if none), or "error" and the store's error. All written is an empty list.
local nothing = string.rep('\0', 24)
local ttl = ARGV[1]
local refused = {}
local function refuse(i, kind, detail)
  refused[#refused + 1] = i
  refused[#refused + 1] = kind
  refused[#refused + 1] = detail
end
for i, key in ipairs(KEYS) do
  local expected = ARGV[2 * i]
  local found, matches
  if expected == nothing then -- whatever is there is left as found, an empty value too
    found = redis.pcall('GET', key)
    matches = not found
  else
    found = redis.pcall('GETRANGE', key, 16, 39)
    matches = found == expected
  end
  if type(found) == 'table' then
    refuse(i, 'error', found['err'])
  elseif matches then
    local done
    if ttl == '0' then
      done = redis.pcall('SET', key, ARGV[2 * i + 1])
    else
      done = redis.pcall('SET', key, ARGV[2 * i + 1], 'PX', ttl)
    end
    if done['err'] then
      refuse(i, 'error', done['err'])
    end
  else
    refuse(i, 'found', redis.call('GET', key))
  end
end
return refused

-- Replaces records whose stamp is the expected one; the others are left alone.
--
-- KEYS: one per session. ARGV, three per key: the expected stamp (bytes 16..31 of the record, "" for a key
-- that must not exist), the new record, its time to live in milliseconds ("0": for ever).
-- Returns what was not written, three entries each: number of the key from 1, "found" and the record found
-- ("" if none), or "error" and the store's error. All written is an empty list.
local refused = {}
for i, key in ipairs(KEYS) do
  local found = redis.pcall('GETRANGE', key, 16, 31)
  if type(found) == 'table' then
    refused[#refused + 1] = i
    refused[#refused + 1] = 'error'
    refused[#refused + 1] = found['err']
  elseif found == ARGV[3 * i - 2] then
    local done
    if ARGV[3 * i] == '0' then
      done = redis.pcall('SET', key, ARGV[3 * i - 1])
    else
      done = redis.pcall('SET', key, ARGV[3 * i - 1], 'PX', ARGV[3 * i])
    end
    if done['err'] then
      refused[#refused + 1] = i
      refused[#refused + 1] = 'error'
      refused[#refused + 1] = done['err']
    end
  else
    refused[#refused + 1] = i
    refused[#refused + 1] = 'found'
    refused[#refused + 1] = redis.call('GET', key) or ''
  end
end
return refused

-- Moves a record to where it is kept for inspection, if it is still the one that was looked at. What lies
-- beside it is deleted: the id is free again.
--
-- KEYS: the record, where it goes, and its sibling. ARGV: the bytes found ("" for a value that is not a string,
-- which no record is), and the milliseconds for which it is kept. Returns 1 if it was moved, else 0.
local kind = redis.call('TYPE', KEYS[1])['ok']
if kind == 'none' then
  return 0
end
if kind == 'string' then
  if redis.call('GET', KEYS[1]) ~= ARGV[1] then
    return 0
  end
elseif ARGV[1] ~= '' then
  return 0
end
redis.call('RENAME', KEYS[1], KEYS[2])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
redis.call('UNLINK', KEYS[3])
return 1

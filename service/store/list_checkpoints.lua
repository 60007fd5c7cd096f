-- Lists what is kept beside a record, without the states.
--
-- KEYS: the sibling. Returns three entries for each field but the cursor: its name, the bytes of its value, and
-- the beginning of that, up to the end of the record's stamp.
local listed = {}
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  if field ~= 'cursor' then
    local kept = redis.call('HGET', KEYS[1], field)
    local cursor_bytes = #kept < 10 and 0 or struct.unpack('<I2', kept, 9)
    listed[#listed + 1] = field
    listed[#listed + 1] = #kept
    listed[#listed + 1] = string.sub(kept, 1, 50 + cursor_bytes)
  end
end
return listed

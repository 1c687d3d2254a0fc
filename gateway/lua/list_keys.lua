-- All API keys. Forgets the ids of those that have expired and gone.
-- KEYS  1 dm:keys hash; reads dm:key:{digest} hash of each
-- ARGV  none
-- Result: {{field, value, …}, …}
local keys = {}
local index = redis.call('HGETALL', KEYS[1])
for i = 1, #index, 2 do
  local fields = redis.call('HGETALL', 'dm:key:' .. index[i + 1])
  if #fields > 0 then
    keys[#keys + 1] = fields
  else
    redis.call('HDEL', KEYS[1], index[i])
  end
end
return keys

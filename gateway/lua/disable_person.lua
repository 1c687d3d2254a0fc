-- Disable a person and end all their sessions.
-- KEYS  1 dm:user:{id} hash   2 dm:sessions:{id} set of digests; deletes dm:session:{digest} of each member
-- ARGV  none
-- Result: number of sessions ended.
if redis.call('EXISTS', KEYS[1]) == 1 then
  redis.call('HSET', KEYS[1], 'disabled', 1)
end
local digests = redis.call('SMEMBERS', KEYS[2])
for _, digest in ipairs(digests) do
  redis.call('DEL', 'dm:session:' .. digest)
end
redis.call('DEL', KEYS[2])
return #digests

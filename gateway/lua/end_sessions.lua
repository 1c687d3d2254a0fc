-- End all sessions of a person.
-- KEYS  1 dm:sessions:{user} set of digests; deletes dm:session:{digest} of each member
-- ARGV  none
-- Result: number of sessions ended.
local digests = redis.call('SMEMBERS', KEYS[1])
for _, digest in ipairs(digests) do
  redis.call('DEL', 'dm:session:' .. digest)
end
redis.call('DEL', KEYS[1])
return #digests

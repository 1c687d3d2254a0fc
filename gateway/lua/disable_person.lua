-- Disable a person, end all their sessions, and ask for the end of their running answers, and of those to people whom
-- their front ends name.
-- KEYS  1 dm:user:{id} hash   2 dm:sessions:{id} set of digests; deletes dm:session:{digest} of each member
--       reads dm:leases ZSET and dm:user:{id} HASH of whom they are, writes dm:turn:{id}:{turn} HASH of those that run
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
local id = string.match(KEYS[1], '^dm:user:(.*)$')
for _, lease in ipairs(redis.call('ZRANGE', 'dm:leases', 0, -1)) do
  local turn, user = 'dm:turn:' .. lease, string.match(lease, '^[^:]*')
  local is_theirs = user == id or redis.call('HGET', 'dm:user:' .. user, 'owner') == id
  if is_theirs and redis.call('EXISTS', turn) == 1 then redis.call('HSET', turn, 'stop', 1) end
end
return #digests

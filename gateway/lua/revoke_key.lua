-- Delete an API key.
-- KEYS  1 dm:keys hash; deletes dm:key:{digest}, dm:limits:{id} and dm:used:{id} hashes, the member of dm:keys:{user} set
-- ARGV  1 id
-- Result: 1, or 0 when there is no such key.
local digest = redis.call('HGET', KEYS[1], ARGV[1])
if not digest then
  return 0
end
local user = redis.call('HGET', 'dm:key:' .. digest, 'user')
redis.call('DEL', 'dm:key:' .. digest, 'dm:limits:' .. ARGV[1], 'dm:used:' .. ARGV[1])
redis.call('HDEL', KEYS[1], ARGV[1])
if user then
  redis.call('SREM', 'dm:keys:' .. user, ARGV[1])
end
return 1

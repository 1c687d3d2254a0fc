-- Whose session this is; puts off its end by idleness, never past its absolute end, and writes that seldom.
-- KEYS  1 dm:session:{digest} hash
-- ARGV  1 now   2 idle limit   3 absolute limit   4 how stale the idle limit may be (seconds)
-- Result: the user's id, or nil when there is no such session any more.
local user, created_at = unpack(redis.call('HMGET', KEYS[1], 'user', 'created_at'))
if not user then
  return false
end
local left = tonumber(created_at) + tonumber(ARGV[3]) - tonumber(ARGV[1])
if left <= 0 then
  redis.call('DEL', KEYS[1])
  return false
end
local ttl = math.min(tonumber(ARGV[2]), left)
if redis.call('TTL', KEYS[1]) < ttl - tonumber(ARGV[4]) then
  redis.call('EXPIRE', KEYS[1], ttl)
end
return user

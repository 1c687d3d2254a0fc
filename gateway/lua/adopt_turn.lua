#!lua flags=allow-oom
-- Take over a turn whose lease has expired.
--
-- KEYS   none; writes dm:leases ZSET, turn (types: keys.lua)
-- ARGV   owner, turn, new holder, lease (ms)
-- result the new fence, or nothing when it is not expired, finished or unknown
-- include keys
local owner, turn, holder, lease_ms = unpack(ARGV)
local turn_key, member, now = key('turn', turn), owner .. ':' .. turn, now_ms()
local expiry = redis.call('ZSCORE', 'dm:leases', member)
if not expiry or tonumber(expiry) > now then return false end
if redis.call('HGET', turn_key, 'status') ~= 'in_progress' then
  redis.call('ZREM', 'dm:leases', member)
  return false
end
redis.call('ZADD', 'dm:leases', now + lease_ms, member)
redis.call('HSET', turn_key, 'holder', holder)
return redis.call('HINCRBY', turn_key, 'fence', 1)

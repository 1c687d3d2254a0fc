#!lua flags=allow-oom
-- Prolong the leases that are still the holder's.
--
-- KEYS   none; writes dm:leases ZSET, reads dm:turn:{owner}:{turn} HASH
-- ARGV   holder, lease (ms), then "{owner}:{turn}" of each
-- result how many were prolonged
local holder, lease_ms = ARGV[1], ARGV[2]
local time = redis.call('TIME')
local expiry, renewed = time[1] * 1000 + math.floor(time[2] / 1000) + lease_ms, 0
for i = 3, #ARGV do
  if redis.call('HGET', 'dm:turn:' .. ARGV[i], 'holder') == holder then
    redis.call('ZADD', 'dm:leases', 'XX', expiry, ARGV[i])
    renewed = renewed + 1
  end
end
return renewed

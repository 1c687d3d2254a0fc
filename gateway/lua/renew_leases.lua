#!lua flags=allow-oom
-- Prolong the leases that are still the holder's; with 0 ms, let go of them.
--
-- KEYS   none; writes dm:leases ZSET, reads dm:turn:{owner}:{turn} HASH
-- ARGV   holder, lease (ms), then "{owner}:{turn}" of each
-- result for each 1, 2 when its owner asked for its end, or 0 where it is no longer the holder's
local holder, lease_ms = ARGV[1], ARGV[2]
local time = redis.call('TIME')
local expiry, results = time[1] * 1000 + math.floor(time[2] / 1000) + lease_ms, {}
for i = 3, #ARGV do
  local turn = redis.call('HMGET', 'dm:turn:' .. ARGV[i], 'holder', 'stop')
  local ours = turn[1] == holder
  if ours then redis.call('ZADD', 'dm:leases', 'XX', expiry, ARGV[i]) end
  results[#results + 1] = ours and (turn[2] and 2 or 1) or 0
end
return results

#!lua flags=no-writes
-- Turns whose holder stopped renewing.
--
-- KEYS   none; reads dm:leases ZSET
-- ARGV   limit
-- result {"{owner}:{turn}", ...}, the longest expired first
local time = redis.call('TIME')
return redis.call('ZRANGEBYSCORE', 'dm:leases', '-inf', time[1] * 1000 + math.floor(time[2] / 1000), 'LIMIT', 0, ARGV[1])

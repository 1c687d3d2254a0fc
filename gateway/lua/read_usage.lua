#!lua flags=no-writes
-- What a person, and the key beside them, may use and have used.
--
-- KEYS   none; reads dm:limits, dm:used and dm:line:people HASH, dm:line:{class}:{u} LIST
-- ARGV   1 now (ms; 0: Redis' own clock)   2 person   3 key or ""   4-7 the installation's limits ("none" or a number)
-- result {now (ms), {{kind, limit (-1: none), used, whose limit it is}, ...}}
-- include quota
local now, who, key = tonumber(ARGV[1]), ARGV[2], ARGV[3] ~= '' and ARGV[3]
if now == 0 then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
local packed = redis.call('HGET', 'dm:line:people', who)
local under_way = packed and cmsgpack.unpack(packed).n or 0
for _, class in ipairs({'inter', 'flex'}) do
  under_way = under_way + redis.call('LLEN', 'dm:line:' .. class .. ':' .. who)
end
return {now, meters(who, key, now, {unpack(ARGV, 4, 7)}, under_way)}

#!lua flags=no-writes
-- Small keys that stand for themselves.
--
-- KEYS   none; ARGV names them
-- ARGV   names of hashes and strings
-- result for each {type, TTL (ms), date of its end (ms), {field, value, ...} or {value}}; type 'none' when it is gone
local READ = {hash = 'HGETALL', string = 'GET'}
local found = {}
for i, name in ipairs(ARGV) do
  local kind = redis.call('TYPE', name).ok
  local value = READ[kind] and redis.call(READ[kind], name) or {}
  found[i] = {kind, redis.call('PTTL', name), redis.call('PEXPIRETIME', name), type(value) == 'table' and value or {value}}
end
return found

#!lua
-- Finish a turn: append its output under its reserved numbers, record result and usage, unlock, drop the lease, give
-- the log its TTL. Fenced.
--
-- KEYS   none; ARGV[1] makes them: writes conv, order, turns, convs, shelf, turn, stream, usage, leases (types: keys.lua)
-- ARGV   owner, turn, fence, status, prompt tokens, completion tokens, day (yyyymmdd), log TTL (s), retention (s),
--        result (packed), then the output items (packed)
-- result {shelf, first number}, or nothing when the fence is not the turn's or it finished otherwise
-- The same finish again gets the first answer again and charges nothing: safe to repeat.
-- include keys
local owner, turn, fence, status, prompt, completion, day, log_seconds, keep_seconds, result = unpack(ARGV, 1, 10)
local FIRST_ITEM, USAGE_SECONDS = 11, 400 * 86400
-- include keep
-- include shelf
local turn_key = key('turn', turn)
local found = redis.call('HMGET', turn_key, 'fence', 'status', 'shelf', 'conv', 'out', 'in')
if found[1] ~= fence then return false end
local shelf, conv = key('shelf', found[3]), found[4]
local first_input, last_input = range(found[6])
if found[2] ~= 'in_progress' then
  if found[2] ~= status or redis.call('HGET', shelf, 'r' .. first_input) ~= result then return false end
  return {found[3], (range(found[5]))}
end

local now = now_ms()
local first = last_input + 1
local last = put_at(shelf, first, FIRST_ITEM)
redis.call('HSET', shelf, 'r' .. first_input, result)
redis.call('HSET', turn_key, 'status', status, 'out', first .. '-' .. last, 'log', log_seconds)
redis.call('HDEL', turn_key, 'undo', 'holder', 'reserve', 'stop')
if conv then
  for n = first, last do redis.call('RPUSH', key('order', conv), n) end
  redis.call('HDEL', key('conv', conv), 'running')
  touch(conv, now)
end
redis.call('ZREM', 'dm:leases', owner .. ':' .. turn)
redis.call('EXPIRE', key('stream', turn), log_seconds)
keep(turn_key)
keep(shelf)

local usage = key('usage', day)
redis.call('HINCRBY', usage, 'prompt', prompt)
redis.call('HINCRBY', usage, 'completion', completion)
redis.call('HINCRBY', usage, 'requests', 1)
redis.call('EXPIRE', usage, USAGE_SECONDS)
return {found[3], first}

#!lua flags=allow-oom
-- Take a begun turn back as if it had never been posted. Nothing happens when the fence is not the turn's.
--
-- KEYS   none; ARGV[1] makes them: writes conv, order, turns, convs, shelf, turn, stream, idem, leases (types: keys.lua)
-- ARGV   owner, turn, fence
-- result 1 when it was taken back, else 0
-- include keys
local owner, turn, fence = unpack(ARGV)
-- include shelf
local turn_key = key('turn', turn)
local found = redis.call('HMGET', turn_key, 'fence', 'status', 'conv', 'shelf', 'in', 'idem', 'undo', 'reserve')
if found[1] ~= fence or found[2] ~= 'in_progress' then return 0 end
local conv, shelf, idem = found[3], key('shelf', found[4]), found[6]

local numbers = {}
extend(numbers, found[5])
release(shelf, numbers)
local first, last = range(found[5])
redis.call('HDEL', shelf, 'q' .. first)
if redis.call('HGET', shelf, 'n') == tostring(last + found[8]) then redis.call('HSET', shelf, 'n', first - 1) end

if conv then
  local conv_key = key('conv', conv)
  local version, updated, titled = string.match(found[7], '^(%d+) (%d+) (%d)$')
  for _, n in ipairs(numbers) do redis.call('LREM', key('order', conv), -1, n) end
  redis.call('LREM', key('turns', conv), -1, turn)
  redis.call('HDEL', conv_key, 'running')
  if redis.call('HGET', conv_key, 'version') == tostring(version + 1) then -- nobody renamed it in between
    redis.call('HSET', conv_key, 'version', version, 'updated', updated)
    redis.call('ZADD', convs_key, 'XX', updated, conv)
    if titled == '1' then redis.call('HDEL', conv_key, 'title') end
  else
    redis.call('HINCRBY', conv_key, 'version', 1)
  end
else
  leave(shelf)
end
local remembered = idem and redis.call('GET', key('idem', idem))
if remembered and string.match(remembered, '^%S+') == turn then redis.call('UNLINK', key('idem', idem)) end
redis.call('UNLINK', turn_key, key('stream', turn))
redis.call('ZREM', 'dm:leases', owner .. ':' .. turn)
return 1

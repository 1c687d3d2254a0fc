#!lua flags=allow-oom
-- Forget a finished response and its log; its items go along unless a conversation holds them.
--
-- KEYS   none; ARGV[1] makes them: writes turn, stream, shelf, turns (types: keys.lua)
-- ARGV   owner, turn
-- result 'deleted' | 'unknown' | 'running'
-- include keys
local _, turn = unpack(ARGV)
-- include shelf
local found = redis.call('HMGET', key('turn', turn), 'status', 'conv', 'shelf', 'in', 'out')
if not found[1] then return 'unknown' end
if found[1] == 'in_progress' then return 'running' end
local shelf = key('shelf', found[3])
local first = range(found[4])
redis.call('HDEL', shelf, 'q' .. first, 'r' .. first)
if found[2] then
  redis.call('LREM', key('turns', found[2]), -1, turn)
else
  local numbers = {}
  extend(numbers, found[4])
  extend(numbers, found[5])
  release(shelf, numbers)
  leave(shelf)
end
redis.call('UNLINK', key('turn', turn), key('stream', turn))
return 'deleted'

#!lua flags=allow-oom
-- Delete a conversation with its responses, their logs, and the items nobody else holds.
--
-- KEYS   none; ARGV[1] makes them: writes conv, order, turns, convs, shelf, turn, stream (types: keys.lua)
-- ARGV   owner, conversation
-- result {'deleted'} | {'no_conversation'} | {'locked', version, running turn}
-- include keys
local _, conv = unpack(ARGV)
-- include shelf
local conv_key, order, turns = key('conv', conv), key('order', conv), key('turns', conv)
local version, running, shelf_id = unpack(redis.call('HMGET', conv_key, 'version', 'running', 'shelf'))
if not version then return {'no_conversation'} end
if running then return {'locked', version, running} end

local shelf = key('shelf', shelf_id)
local shared = redis.call('HGET', shelf, 'refs') ~= '1'
if shared then release(shelf, redis.call('LRANGE', order, 0, -1)) end
for _, turn in ipairs(redis.call('LRANGE', turns, 0, -1)) do
  local input = shared and redis.call('HGET', key('turn', turn), 'in')
  if input then
    local first = range(input)
    redis.call('HDEL', shelf, 'q' .. first, 'r' .. first)
  end
  redis.call('UNLINK', key('turn', turn), key('stream', turn))
end
leave(shelf)
redis.call('UNLINK', conv_key, order, turns)
redis.call('ZREM', convs_key, conv)
return {'deleted'}

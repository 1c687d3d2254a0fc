#!lua
-- Append items to a conversation that no turn is being written to.
--
-- KEYS   none; ARGV[1] makes them: writes conv, order, turns, convs, shelf, reads turn (types: keys.lua)
-- ARGV   owner, conversation, retention (s), then the items (packed)
-- result {'added', shelf, first number} | {'no_conversation'} | {'locked', version, running turn}
-- include keys
local _, conv, keep_seconds = unpack(ARGV, 1, 3)
local FIRST_ITEM = 4
-- include keep
-- include shelf
local version, running, shelf_id = unpack(redis.call('HMGET', key('conv', conv), 'version', 'running', 'shelf'))
if not version then return {'no_conversation'} end
if running then return {'locked', version, running} end
local first, last = put(key('shelf', shelf_id), FIRST_ITEM)
for n = first, last do redis.call('RPUSH', key('order', conv), n) end
touch(conv, now_ms())
keep(key('shelf', shelf_id))
return {'added', shelf_id, first}

#!lua flags=allow-oom
-- Take one item out of a conversation; it goes when no branch holds it.
--
-- KEYS   none; ARGV[1] makes them: writes conv, order, turns, convs, shelf, reads turn (types: keys.lua)
-- ARGV   owner, conversation, shelf and number that the item's id names, retention (s)
-- result {'deleted'} | {'no_conversation'} | {'no_item'} | {'locked', version, running turn}
-- include keys
local _, conv, shelf, number, keep_seconds = unpack(ARGV)
-- include keep
-- include shelf
local version, running, found = unpack(redis.call('HMGET', key('conv', conv), 'version', 'running', 'shelf'))
if not version then return {'no_conversation'} end
if running then return {'locked', version, running} end
if found ~= shelf or redis.call('LREM', key('order', conv), 1, number) == 0 then return {'no_item'} end
release(key('shelf', shelf), {number})
touch(conv, now_ms())
return {'deleted'}

#!lua flags=no-writes
-- One item of a conversation.
--
-- KEYS   none; ARGV[1] makes them: reads conv, order, shelf (types: keys.lua)
-- ARGV   owner, conversation, shelf and number that the item's id names
-- result {'item', item} | {'no_conversation'} | {'no_item'}
-- include keys
local _, conv, shelf, number = unpack(ARGV)
local found = redis.call('HGET', key('conv', conv), 'shelf')
if not found then return {'no_conversation'} end
if found ~= shelf or not redis.call('LPOS', key('order', conv), number) then return {'no_item'} end
return {'item', redis.call('HGET', key('shelf', shelf), number)}

#!lua flags=no-writes
-- All items before a new turn, oldest first.
--
-- KEYS   none; ARGV[1] makes them: reads conv, order, shelf, turn (types: keys.lua)
-- ARGV   owner, conversation or '', previous turn or ''
-- result {'items', shelf, {number, item, number, item, ...}} | {'no_conversation'} | {'no_previous'} | {'too_deep'}
-- include keys
local _, conv, previous = unpack(ARGV)
-- include shelf
-- include context
if conv ~= '' then
  local shelf = redis.call('HGET', key('conv', conv), 'shelf')
  if not shelf then return {'no_conversation'} end
  return {'items', shelf, fetch(key('shelf', shelf), order_until(conv))}
end
local shelf, numbers = context(previous)
if not shelf then return {numbers} end
return {'items', shelf, fetch(key('shelf', shelf), numbers)}

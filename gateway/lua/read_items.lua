#!lua flags=no-writes
-- A page of a conversation's items, and the turn that brought or wrote each.
--
-- KEYS   none; ARGV[1] makes them: reads conv, order, turns, turn, shelf (types: keys.lua)
-- ARGV   owner, conversation, how many, 'asc' or 'desc', number after which the page begins (it need not exist) or ''
-- result {'items', shelf, {number, item, ...}, {turn or '', ...}} | {'no_conversation'}
-- include keys
local _, conv, limit, direction, after = unpack(ARGV)
-- include shelf
-- include turns
local shelf = redis.call('HGET', key('conv', conv), 'shelf')
if not shelf then return {'no_conversation'} end
local all, page = redis.call('LRANGE', key('order', conv), 0, -1), {}
local from, to, step = 1, #all, 1
if direction == 'desc' then from, to, step = #all, 1, -1 end
for i = from, to, step do
  if #page == tonumber(limit) then break end
  if after == '' or (all[i] - after) * step > 0 then page[#page + 1] = all[i] end
end
local items, brought, turns = fetch(key('shelf', shelf), page), turns_by_number(conv), {}
for i = 1, #items, 2 do turns[#turns + 1] = brought[items[i]] or '' end
return {'items', shelf, items, turns}

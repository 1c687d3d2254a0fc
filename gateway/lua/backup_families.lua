#!lua flags=no-writes
-- Families: conversations and turns that share a shelf, each family as it is at this moment, without what lies there.
-- Whatever a member leads to belongs to the family too, even if nobody named it: it came while names were collected.
--
-- KEYS   none; ARGV names them: reads conv, order, turns, turn, shelf, stream, idem (types: parts/keys.lua)
-- ARGV   how many members are enough for one call, then for each family: owner, shelf, how many conversations, how many
--        turns, the ids of both
-- result of as many families as were looked at, the first always: {highest number given, TTL of the shelf,
--        {{id, TTL, fields, item numbers, turns}, ...} of conversations,
--        {{id, TTL, fields, TTL of its stream, remembered key or '', its TTL}, ...} of turns}; TTLs in ms as PTTL tells them
local function value_of(fields, name)
  for n = 1, #fields, 2 do
    if fields[n] == name then return fields[n + 1] end
  end
end

local function family(owner, shelf, first, conversations, turns)
  local function key(kind, id) return 'dm:' .. kind .. ':' .. owner .. ':' .. id end
  local known, todo, convs_found, turns_found = {}, {}, {}, {}
  local function meet(kind, id)
    if id and not known[kind .. id] then
      known[kind .. id] = true
      todo[#todo + 1] = {kind, id}
    end
  end

  for n = first, first + conversations - 1 do meet('conv', ARGV[n]) end
  for n = first + conversations, first + conversations + turns - 1 do meet('turn', ARGV[n]) end
  local at = 1
  while at <= #todo do
    local kind, id = unpack(todo[at])
    local name = key(kind, id)
    local fields = redis.call('HGETALL', name)
    if value_of(fields, 'shelf') ~= shelf then -- gone
    elseif kind == 'conv' then
      local own = redis.call('LRANGE', key('turns', id), 0, -1)
      for _, turn in ipairs(own) do meet('turn', turn) end
      convs_found[#convs_found + 1] =
        {id, redis.call('PTTL', name), fields, redis.call('LRANGE', key('order', id), 0, -1), own}
    else
      meet('conv', value_of(fields, 'conv'))
      meet('turn', value_of(fields, 'prev'))
      local idem = value_of(fields, 'idem')
      local remembered = idem and redis.call('GET', key('idem', idem))
      turns_found[#turns_found + 1] = {id, redis.call('PTTL', name), fields, redis.call('PTTL', key('stream', id)),
        remembered or '', remembered and redis.call('PTTL', key('idem', idem)) or -2}
    end
    at = at + 1
  end
  return {redis.call('HGET', key('shelf', shelf), 'n'), redis.call('PTTL', key('shelf', shelf)), convs_found, turns_found}, at
end

local left, i, families = tonumber(ARGV[1]), 2, {}
while i <= #ARGV and left > 0 do
  local conversations, turns = tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3])
  local found, looked_at = family(ARGV[i], ARGV[i + 1], i + 4, conversations, turns)
  families[#families + 1] = found
  left = left - looked_at
  i = i + 4 + conversations + turns
end
return families

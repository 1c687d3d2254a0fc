-- Which turn brought or wrote what stands in a conversation. Part of other scripts; needs keys and shelf.

-- Turn by item number: of the conversation's turns and of those it branched from, as far back as they still exist.
local function turns_by_number(conv)
  local by_number, seen = {}, {}
  local function note(turn)
    if seen[turn] then return end
    seen[turn] = true
    local found, numbers = redis.call('HMGET', key('turn', turn), 'in', 'out', 'conv', 'prev'), {}
    extend(numbers, found[1])
    extend(numbers, found[2])
    for _, n in ipairs(numbers) do by_number[n] = turn end
    return found[3], found[4]
  end
  while conv and not seen[conv] do
    seen[conv] = true
    for _, turn in ipairs(redis.call('LRANGE', key('turns', conv), 0, -1)) do note(turn) end
    local meta = redis.call('HGET', key('conv', conv), 'meta')
    local origin = meta and cjson.decode(meta)['deskmate:branch_of']
    conv = nil
    while origin and not conv do conv, origin = note(origin) end
  end
  return by_number
end

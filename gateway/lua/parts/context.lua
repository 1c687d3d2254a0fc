-- What stands before the turn that follows a given one. Part of other scripts; needs keys and shelf.
local DEPTH = 2000

-- The numbers of a conversation's items up to and including `last`.
local function order_until(conv, last)
  local numbers = {}
  for _, n in ipairs(redis.call('LRANGE', key('order', conv), 0, -1)) do
    if last and tonumber(n) > last then break end
    numbers[#numbers + 1] = n
  end
  return numbers
end

-- Walk the links back from `turn`: its shelf's id and the numbers oldest first, and each turn passed.
-- When a link is missing or there are too many: nil and 'no_previous' or 'too_deep'.
local function context(turn)
  local groups, passed, numbers, shelf = {}, {}, {}, nil
  repeat
    if #passed == DEPTH then return nil, 'too_deep' end
    local link = redis.call('HMGET', key('turn', turn), 'shelf', 'conv', 'prev', 'in', 'out')
    if not link[1] then return nil, 'no_previous' end
    shelf = link[1]
    passed[#passed + 1] = turn
    if link[2] then
      local _, last = range(link[5] or link[4])
      groups[#groups + 1] = order_until(link[2], last)
    else
      local group = {}
      extend(group, link[4])
      extend(group, link[5])
      groups[#groups + 1] = group
    end
    turn = not link[2] and link[3]
  until not turn
  for i = #groups, 1, -1 do
    for _, n in ipairs(groups[i]) do numbers[#numbers + 1] = n end
  end
  return shelf, numbers, passed
end

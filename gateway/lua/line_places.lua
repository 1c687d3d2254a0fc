#!lua flags=no-writes
-- The places in line of a gateway's requests.
--
-- KEYS   none; reads dm:line:*
-- ARGV   1-5 as in parts/line.lua
-- result {id, place (1 is next), wait (ms, -1: unknown), ...}
-- include line
local tags, promised = {}, redis.call('LRANGE', 'dm:line:promised', 0, -1)
for i, id in ipairs(promised) do
  tags[i] = {id = id, tag = -1, came = i, flex = false, cost = 0, mine = request_of(id).gateway == gateway}
end
for _, class in ipairs({'inter', 'flex'}) do
  local ready = redis.call('ZRANGE', 'dm:line:ready:' .. class, 0, -1, 'WITHSCORES')
  for i = 1, #ready, 2 do
    local tag = tonumber(ready[i + 1])
    local ids = redis.call('LRANGE', 'dm:line:' .. class .. ':' .. name_of(ready[i]), 0, -1)
    for at, packed in ipairs(redis.call('HMGET', 'dm:line:requests', unpack(ids))) do
      local request = cmsgpack.unpack(packed)
      local cost = PROMPT * request.prompt + OUTPUT * expected(request)
      tags[#tags + 1] = {
        id = ids[at], tag = tag, came = request.came, flex = class == 'flex', cost = cost,
        mine = request.gateway == gateway,
      }
      tag = tag + cost / request.weight
    end
  end
end
table.sort(tags, function(a, b)
  if a.flex ~= b.flex then return not a.flex end
  if a.tag ~= b.tag then return a.tag < b.tag end
  return a.came < b.came
end)
local ahead, result = 0, {}
for place, one in ipairs(tags) do
  if one.mine then
    local wait = wait_for(ahead)
    result[#result + 1] = one.id
    result[#result + 1] = place
    result[#result + 1] = wait and math.ceil(wait * 1000) or -1
  end
  ahead = ahead + one.cost
end
return result

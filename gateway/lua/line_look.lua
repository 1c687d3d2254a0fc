#!lua flags=no-writes
-- How the line is, as a whole.
--
-- KEYS   none; reads dm:line:*
-- ARGV   1-5 as in parts/line.lua
-- result {requests in flight, people who wait, how far the one served least of them (inter) is behind the clock,
--        how evenly the last minute went, as strings: Jain's index, the largest share; among how many people;
--        then of inter, flex and promised: how many wait, for how long the oldest does (ms)}
-- include line
local waiting, of_each = {}, {}

local function count(ids, into)
  into.length = into.length + #ids
  if #ids == 0 then return end
  local since = request_of(ids[1]).since
  if into.oldest == 0 or since < into.oldest then into.oldest = since end
end

for _, class in ipairs({'inter', 'flex'}) do
  local found = {length = 0, oldest = 0}
  for _, one in ipairs(redis.call('ZRANGE', 'dm:line:ready:' .. class, 0, -1)) do
    local name = name_of(one)
    waiting[name] = true
    count(redis.call('LRANGE', 'dm:line:' .. class .. ':' .. name, 0, -1), found)
  end
  of_each[#of_each + 1] = found
end
of_each[#of_each + 1] = {length = 0, oldest = 0}
count(redis.call('LRANGE', 'dm:line:promised', 0, -1), of_each[#of_each])

local people_waiting, behind = 0, 0
local least = redis.call('ZRANGE', 'dm:line:ready:inter', 0, 0)[1]
if least then behind = math.max(0, math.floor(clock.v - person_of(name_of(least)).inter)) end
for _ in pairs(waiting) do people_waiting = people_waiting + 1 end
local result = {
  clock.flying, people_waiting, behind, tostring(clock.among > 0 and clock.jain or 1), tostring(clock.largest), clock.among,
}
for _, found in ipairs(of_each) do
  result[#result + 1] = found.length
  result[#result + 1] = found.oldest > 0 and now - found.oldest or 0
end
return result

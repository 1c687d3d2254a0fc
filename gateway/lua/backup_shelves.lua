#!lua flags=no-writes
-- What lies on shelves, as much as one call may bring.
--
-- KEYS   none; ARGV names them: reads dm:shelf HASH
-- ARGV   how many bytes are enough, then for each shelf: "{owner}:{shelf}", how many fields, the fields
-- result the values in that order, nothing in place of what is not there; fewer than were asked for when they are enough
local STEP, OVERHEAD = 16, 64 -- fields looked up at once; what a value costs besides its bytes
local left, i, values = tonumber(ARGV[1]), 2, {}
while i <= #ARGV and left > 0 do
  local from, last = i + 2, i + 1 + ARGV[i + 1]
  while from <= last and left > 0 do
    local to = math.min(from + STEP - 1, last)
    for _, value in ipairs(redis.call('HMGET', 'dm:shelf:' .. ARGV[i], unpack(ARGV, from, to))) do
      values[#values + 1] = value
      left = left - OVERHEAD - (value and #value or 0)
    end
    from = to + 1
  end
  i = last + 1
end
return values

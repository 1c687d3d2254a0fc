-- Make a person whom a front end names, unless one has that name or there are too many.
-- KEYS  1 dm:username:{folded} string   2 dm:user:{id} hash   3 dm:delegates:{owner} zset
-- ARGV  1 id   2 name   3 role   4 created_at (whole seconds)   5 the same, finer, for the order   6 owner   7 most
-- Result: the id of the person of that name, new or old; nil when there would be more than the most.
local holder = redis.call('GET', KEYS[1])
if holder then
  return holder
end
if redis.call('ZCARD', KEYS[3]) >= tonumber(ARGV[7]) then
  return false
end
redis.call('HSET', KEYS[2], 'v', 1, 'name', ARGV[2], 'role', ARGV[3], 'department', '', 'disabled', 0,
  'created_at', ARGV[4], 'owner', ARGV[6])
redis.call('ZADD', KEYS[3], ARGV[5], ARGV[1])
redis.call('SET', KEYS[1], ARGV[1])
return ARGV[1]

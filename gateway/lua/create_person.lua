-- Make a person, unless one has that name.
-- KEYS  1 dm:username:{folded} string   2 dm:user:{id} hash   3 dm:users zset
-- ARGV  1 id   2 name   3 role   4 department or ""   5 created_at (whole seconds)   6 the same, finer, for the order
-- Result: the id of the person of that name, new or old.
local holder = redis.call('GET', KEYS[1])
if holder then
  return holder
end
redis.call('HSET', KEYS[2], 'v', 1, 'name', ARGV[2], 'role', ARGV[3], 'department', ARGV[4],
  'disabled', 0, 'created_at', ARGV[5])
redis.call('ZADD', KEYS[3], ARGV[6], ARGV[1])
redis.call('SET', KEYS[1], ARGV[1])
return ARGV[1]

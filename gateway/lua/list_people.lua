-- Everybody, oldest first.
-- KEYS  1 dm:users zset; reads dm:user:{id} hash and dm:keys:{id} set of each member
-- ARGV  none
-- Result: {{id, number of keys, {field, value, …}}, …}
local people = {}
for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  people[#people + 1] = {id, redis.call('SCARD', 'dm:keys:' .. id), redis.call('HGETALL', 'dm:user:' .. id)}
end
return people

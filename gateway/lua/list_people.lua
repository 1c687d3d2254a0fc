-- People of one list, a range of it.
-- KEYS  1 dm:users zset or dm:delegates:{id} zset
--       reads dm:user:{id} hash, dm:keys:{id} set and dm:delegates:{id} zset of each member
-- ARGV  1 first   2 last   3 "REV" for the newest first, or left out
-- Result: {{id, number of keys, number of people their front ends name, {field, value, …}}, …}
local range = ARGV[3] and 'ZREVRANGE' or 'ZRANGE'
local people = {}
for _, id in ipairs(redis.call(range, KEYS[1], ARGV[1], ARGV[2])) do
  people[#people + 1] = {
    id, redis.call('SCARD', 'dm:keys:' .. id), redis.call('ZCARD', 'dm:delegates:' .. id),
    redis.call('HGETALL', 'dm:user:' .. id),
  }
end
return people

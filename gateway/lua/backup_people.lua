#!lua flags=no-writes
-- People by their names, each with everything that makes them a person.
--
-- KEYS   none; ARGV names them: reads dm:username strings, dm:user hashes, dm:users zset
-- ARGV   names of dm:username keys
-- result for each {id, place in the order of people, {field, value, ...}}
local people = {}
for i, name in ipairs(ARGV) do
  local id = redis.call('GET', name)
  people[i] = {id, redis.call('ZSCORE', 'dm:users', id), redis.call('HGETALL', 'dm:user:' .. id)}
end
return people

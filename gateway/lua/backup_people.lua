#!lua flags=no-writes
-- People by their names, each with everything that makes them a person.
--
-- KEYS   none; ARGV names them: reads dm:username strings, dm:user hashes, dm:users and dm:delegates zsets
-- ARGV   names of dm:username keys
-- result for each {id, place in the order of people, {field, value, ...}}
local people = {}
for i, name in ipairs(ARGV) do
  local id = redis.call('GET', name)
  local owner = redis.call('HGET', 'dm:user:' .. id, 'owner')
  local list = owner and 'dm:delegates:' .. owner or 'dm:users'
  people[i] = {id, redis.call('ZSCORE', list, id), redis.call('HGETALL', 'dm:user:' .. id)}
end
return people

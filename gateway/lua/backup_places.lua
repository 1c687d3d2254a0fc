#!lua flags=no-writes
-- On which shelf conversations and turns lie, and to which conversation a turn belongs.
--
-- KEYS   none; ARGV names them: reads dm:conv and dm:turn HASH
-- ARGV   names
-- result for each {shelf, conversation}, nothing in place of what there is not
local places = {}
for i, name in ipairs(ARGV) do places[i] = redis.call('HMGET', name, 'shelf', 'conv') end
return places

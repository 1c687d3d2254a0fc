#!lua flags=no-writes
-- One response as stored.
--
-- KEYS   none; ARGV[1] makes them: reads turn, shelf (types: keys.lua)
-- ARGV   owner, turn
-- result {created, status, conversation, previous, request, result, shelf, {input: number, item, ...},
--        {output}, first output number}, or nothing
-- include keys
local _, turn = unpack(ARGV)
-- include shelf
local found = redis.call('HMGET', key('turn', turn), 'created', 'status', 'conv', 'prev', 'shelf', 'in', 'out')
if not found[1] then return false end
local shelf, input, output = key('shelf', found[5]), {}, {}
extend(input, found[6])
extend(output, found[7])
local first_input, last_input = range(found[6])
local request, result = unpack(redis.call('HMGET', shelf, 'q' .. first_input, 'r' .. first_input))
return {found[1], found[2], found[3], found[4], request, result, found[5], fetch(shelf, input), fetch(shelf, output),
  last_input + 1}

#!lua
-- A step is done: the data has the next version now, unless another process has said so already.
--
-- KEYS   none; writes dm:meta HASH
-- ARGV   version the step starts from, version it leads to
-- result 1, or 0 when the data had another version
-- include version
local from, to = unpack(ARGV)
if not still_at(from) then return 0 end
redis.call('HSET', 'dm:meta', 'data_version', to)
return 1

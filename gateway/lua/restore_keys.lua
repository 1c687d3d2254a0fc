#!lua
-- Write keys of a backup; what a key has already is added to.
--
-- KEYS   none; ARGV names them
-- ARGV   for each: name, type, '' or 'for' or 'until', milliseconds that it lasts or the date of its end, how many values,
--        the values as HSET, RPUSH, SADD, ZADD or SET take them; of a stream: id, field, value of each entry
-- result OK
-- One whose date is over is gone at once.
local WRITE = {hash = 'HSET', list = 'RPUSH', set = 'SADD', zset = 'ZADD', string = 'SET'}
local i = 1
while i <= #ARGV do
  local name, kind, mode, moment, count = unpack(ARGV, i, i + 4)
  local first, last = i + 5, i + 4 + count
  if kind == 'stream' then
    for n = first, last, 3 do redis.call('XADD', name, ARGV[n], ARGV[n + 1], ARGV[n + 2]) end
  else
    redis.call(WRITE[kind], name, unpack(ARGV, first, last))
  end
  if mode == 'for' then redis.call('PEXPIRE', name, moment) end
  if mode == 'until' then redis.call('PEXPIREAT', name, moment) end
  i = last + 1
end
return redis.status_reply('OK')

-- Note the day of a key's use, unless the key has just been revoked.
-- KEYS  1 dm:key:{digest} hash
-- ARGV  1 day, as 2030-12-31
-- Result: 1, or 0 when there is no such key.
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
redis.call('HSET', KEYS[1], 'last_used', ARGV[1])
return 1

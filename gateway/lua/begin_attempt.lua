-- Count a try to sign in, or say how long to wait.
-- KEYS  1 tries of this account from this address   2 of this address   3 of this account   (strings, counters)
--       4 dm:trusted:… string: the account has signed in from the address
-- ARGV  1 2 3 their limits   4 window (seconds)
-- Result: 0 when counted, else the seconds to wait.
local checked = redis.call('EXISTS', KEYS[4]) == 1 and 1 or 3
for i = 1, checked do
  if tonumber(redis.call('GET', KEYS[i]) or 0) >= tonumber(ARGV[i]) then
    return math.max(1, redis.call('TTL', KEYS[i]))
  end
end
for i = 1, checked do
  if redis.call('INCR', KEYS[i]) == 1 then
    redis.call('EXPIRE', KEYS[i], ARGV[4])
  end
end
return 0

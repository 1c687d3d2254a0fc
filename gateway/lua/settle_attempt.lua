-- A try to sign in was no failure: take back what was counted.
-- KEYS  as of begin_attempt
-- ARGV  1 seconds to trust the address with this account, when it has signed in; 0 when the try was not made
-- Result: OK
for i = 1, 3 do
  local count = tonumber(redis.call('GET', KEYS[i]) or 0)
  if count > 0 and not (i > 1 and redis.call('EXISTS', KEYS[4]) == 1) then
    redis.call('DECR', KEYS[i])
  end
end
if ARGV[1] ~= '0' then
  redis.call('DEL', KEYS[1])
  redis.call('SET', KEYS[4], 1, 'EX', ARGV[1])
end
return redis.status_reply('OK')

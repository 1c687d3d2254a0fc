-- Set limits of a person or a key, or take them back.
-- KEYS  1 dm:limits:{id} hash
-- ARGV  1 when it may go (seconds, with its key), or ""; then kind, limit (a number, "none", or "" to take it back), ...
-- Result: OK.
for i = 2, #ARGV, 2 do
  if ARGV[i + 1] == '' then
    redis.call('HDEL', KEYS[1], ARGV[i])
  else
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  end
end
if ARGV[1] ~= '' then
  redis.call('EXPIREAT', KEYS[1], ARGV[1])
end
return redis.status_reply('OK')

-- Begin a session, and note that this person has signed in; forgets the digests of sessions that have ended.
-- KEYS  1 dm:session:{digest} hash   2 dm:sessions:{user} set of digests   3 dm:user:{user} hash
-- ARGV  1 digest   2 user   3 now   4 idle limit   5 absolute limit (seconds)
-- Result: OK
for _, digest in ipairs(redis.call('SMEMBERS', KEYS[2])) do
  if redis.call('EXISTS', 'dm:session:' .. digest) == 0 then
    redis.call('SREM', KEYS[2], digest)
  end
end
redis.call('HSET', KEYS[1], 'v', 1, 'user', ARGV[2], 'created_at', ARGV[3])
redis.call('EXPIRE', KEYS[1], ARGV[4])
redis.call('HSET', KEYS[3], 'signed_in', 1)
redis.call('SADD', KEYS[2], ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[5])
return redis.status_reply('OK')

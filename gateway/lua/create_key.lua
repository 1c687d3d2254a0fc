-- Store a new API key by its digest.
-- KEYS  1 dm:key:{digest} hash   2 dm:keys:{user} set   3 dm:keys hash
-- ARGV  1 id   2 digest   3 user   4 name   5 scopes   6 created_at   7 expires_at or "" (seconds)
-- Result: OK. An expiring key's hash goes a day after its expiry.
redis.call('HSET', KEYS[1], 'v', 1, 'id', ARGV[1], 'user', ARGV[3], 'name', ARGV[4], 'scopes', ARGV[5],
  'created_at', ARGV[6], 'expires_at', ARGV[7])
if ARGV[7] ~= '' then
  redis.call('EXPIREAT', KEYS[1], tonumber(ARGV[7]) + 86400)
end
redis.call('SADD', KEYS[2], ARGV[1])
redis.call('HSET', KEYS[3], ARGV[1], ARGV[2])
return redis.status_reply('OK')

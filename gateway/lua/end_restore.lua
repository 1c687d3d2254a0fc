#!lua
-- A restore is whole: the data has the backup's version and may be served.
--
-- KEYS   none; writes dm:meta HASH
-- ARGV   data version of the backup
-- result OK
redis.call('HSET', 'dm:meta', 'data_version', ARGV[1])
redis.call('HDEL', 'dm:meta', 'restoring')
return redis.status_reply('OK')

#!lua
-- Replace a conversation's metadata.
--
-- KEYS   none; ARGV[1] makes them: writes conv, order, turns, convs, reads turn (types: keys.lua)
-- ARGV   owner, conversation, expected version or '', retention (s), metadata (JSON, without the title), title or ''
-- result {'updated'} | {'no_conversation'} | {'version', version}
-- include keys
local _, conv, expected, keep_seconds, meta, title = unpack(ARGV)
-- include keep
local conv_key = key('conv', conv)
local version, shelf = unpack(redis.call('HMGET', conv_key, 'version', 'shelf'))
if not version then return {'no_conversation'} end
if expected ~= '' and expected ~= version then return {'version', version} end
redis.call('HSET', conv_key, 'meta', meta)
if title ~= '' then redis.call('HSET', conv_key, 'title', title) else redis.call('HDEL', conv_key, 'title') end
touch(conv, now_ms())
keep(key('shelf', shelf))
return {'updated'}

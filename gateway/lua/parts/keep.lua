-- How long things live. `keep_seconds` is a local of the including script; 0 keeps for ever. Part of other scripts.
-- A day is added because the TTLs of older turns are refreshed once a day only (`kept`), which keeps a turn's cost flat.
local DAY_MS = 86400000

local function keep(name)
  if tonumber(keep_seconds) > 0 then
    redis.call('EXPIRE', name, keep_seconds + 86400)
  else
    redis.call('PERSIST', name)
  end
end

local function keep_conversation(conv, now)
  keep(key('conv', conv))
  keep(key('order', conv))
  keep(key('turns', conv))
  local kept = redis.call('HGET', key('conv', conv), 'kept')
  if kept and now - kept < DAY_MS then return end
  redis.call('HSET', key('conv', conv), 'kept', now)
  for _, turn in ipairs(redis.call('LRANGE', key('turns', conv), 0, -1)) do keep(key('turn', turn)) end
end

-- Forget list entries of conversations whose TTL is over, a few at a time.
local function prune(now)
  if tonumber(keep_seconds) == 0 then return end
  local old = redis.call('ZRANGEBYSCORE', convs_key, '-inf', now - keep_seconds * 1000, 'LIMIT', 0, 10)
  for _, conv in ipairs(old) do
    if redis.call('EXISTS', key('conv', conv)) == 0 then redis.call('ZREM', convs_key, conv) end
  end
end

-- One more change of a conversation: version, time, place in the list, TTLs.
local function touch(conv, now)
  redis.call('HINCRBY', key('conv', conv), 'version', 1)
  redis.call('HSET', key('conv', conv), 'updated', now)
  redis.call('ZADD', convs_key, now, conv)
  keep(convs_key)
  keep_conversation(conv, now)
  prune(now)
end

#!lua
-- Begin a turn: append its input, create it with its lease, lock its conversation. All or nothing.
--
-- KEYS   none; ARGV[1] makes them: reads and writes conv, order, turns, convs, shelf, turn, stream, idem, leases
--        (types: keys.lua)
-- ARGV   owner, turn, conversation, previous, expected version, idempotency key, its digest, its seconds, title, holder,
--        lease (ms), created (s), id for a new shelf, retention (s), request (packed), how many numbers to
--        reserve for the output, 1 to attach to what came before under the key (0 replaces it), the first entry of
--        the log, then the input items (packed).
--        '' stands for what is absent.
-- result {'begun', fence, shelf, first number} | {'attached', turn} | {'reused'} | {'no_conversation'} | {'no_previous'}
--        | {'too_deep'} | {'locked', version or '', running turn} | {'version', version}
-- The same turn begun again by the same holder gets the first answer again: safe to repeat.
-- include keys
local owner, turn, conv, previous, expected, idem, digest, idem_seconds, title, holder, lease_ms, created, shelf_id,
  keep_seconds, request, reserve, attach, entry = unpack(ARGV, 1, 18)
local FIRST_ITEM, ABANDONED_SECONDS = 19, 30 * 86400
-- include keep
-- include shelf
-- include context
local turn_key, conv_key = key('turn', turn), key('conv', conv)
local now = now_ms()

if idem ~= '' and attach == '1' then
  local before = redis.call('GET', key('idem', idem))
  if before then
    local first_turn, first_digest = string.match(before, '^(%S+) (.*)$')
    if first_digest ~= digest then return {'reused'} end
    if first_turn ~= turn then return {'attached', first_turn} end
  end
end

local before = redis.call('HMGET', turn_key, 'fence', 'shelf', 'in', 'holder', 'status')
if before[1] then
  if before[4] ~= holder or before[5] ~= 'in_progress' then return {'attached', turn} end
  return {'begun', tonumber(before[1]), before[2], (range(before[3]))}
end

local undo, kept = '', now
if conv ~= '' then
  local found = redis.call('HMGET', conv_key, 'version', 'running', 'shelf', 'updated', 'title')
  if not found[1] then return {'no_conversation'} end
  if found[2] then return {'locked', found[1], found[2]} end
  if expected ~= '' and expected ~= found[1] then return {'version', found[1]} end
  shelf_id = found[3]
  local titled = title ~= '' and not found[5]
  if titled then redis.call('HSET', conv_key, 'title', title) end
  undo = found[1] .. ' ' .. found[4] .. ' ' .. (titled and 1 or 0)
elseif previous ~= '' then
  local link = redis.call('HMGET', key('turn', previous), 'shelf', 'status', 'kept')
  if not link[1] then return {'no_previous'} end
  if link[2] == 'in_progress' then return {'locked', '', previous} end
  shelf_id, kept = link[1], tonumber(link[3] or 0)
  if now - kept >= DAY_MS then
    local found, refused, passed = context(previous)
    if not found then return {refused} end
    for _, link_turn in ipairs(passed) do keep(key('turn', link_turn)) end
    kept = now
  end
end

local shelf = key('shelf', shelf_id)
local first, last = put(shelf, FIRST_ITEM)
redis.call('HINCRBY', shelf, 'n', reserve)
redis.call('HSET', shelf, 'q' .. first, request)
redis.call('HSET', turn_key, 'created', created, 'status', 'in_progress', 'shelf', shelf_id, 'in', first .. '-' .. last,
  'reserve', reserve, 'fence', 1, 'holder', holder, 'retention', 'default')
if previous ~= '' then redis.call('HSET', turn_key, 'prev', previous) end
if conv ~= '' then
  redis.call('HSET', turn_key, 'conv', conv, 'undo', undo)
  redis.call('HSET', conv_key, 'running', turn)
  for n = first, last do redis.call('RPUSH', key('order', conv), n) end
  redis.call('RPUSH', key('turns', conv), turn)
  touch(conv, now)
else
  redis.call('HSET', turn_key, 'kept', kept)
  redis.call('HINCRBY', shelf, 'refs', 1)
end
if idem ~= '' then
  redis.call('HSET', turn_key, 'idem', idem)
  redis.call('SET', key('idem', idem), turn .. ' ' .. digest, 'EX', idem_seconds)
end
if entry ~= '' then
  redis.call('XADD', key('stream', turn), '1-0', 'e', entry)
  redis.call('EXPIRE', key('stream', turn), ABANDONED_SECONDS) -- its end sets a shorter one
end
redis.call('ZADD', 'dm:leases', now + lease_ms, owner .. ':' .. turn)
keep(turn_key)
keep(shelf)
return {'begun', 1, shelf_id, first}

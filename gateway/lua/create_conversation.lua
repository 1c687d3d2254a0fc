#!lua
-- Create a conversation; a branch starts with a response's context and output, shared by reference.
--
-- KEYS   none; ARGV[1] makes them: writes conv, order, convs, shelf, reads turn (types: keys.lua)
-- ARGV   owner, conversation, id for a new shelf, retention (s), metadata (JSON, without the title), title or '',
--        response to branch from or '', then the items (packed)
-- result {'created'} | {'no_previous'} | {'too_deep'} | {'locked', '', running turn}
-- The same conversation created again is left as it is: safe to repeat.
-- include keys
local _, conv, shelf_id, keep_seconds, meta, title, origin = unpack(ARGV, 1, 7)
local FIRST_ITEM = 8
-- include keep
-- include shelf
-- include context
local conv_key, order, now, numbers = key('conv', conv), key('order', conv), now_ms(), {}
if redis.call('EXISTS', conv_key) == 1 then return {'created'} end
if origin ~= '' then
  if redis.call('HGET', key('turn', origin), 'status') == 'in_progress' then return {'locked', '', origin} end
  local found, of_origin = context(origin)
  if not found then return {of_origin} end
  shelf_id, numbers = found, of_origin
end

local shelf = key('shelf', shelf_id)
hold(shelf, numbers)
for _, n in ipairs(numbers) do redis.call('RPUSH', order, n) end
local first, last = put(shelf, FIRST_ITEM)
for n = first, last do redis.call('RPUSH', order, n) end
redis.call('HINCRBY', shelf, 'refs', 1)
redis.call('HSET', conv_key, 'created', math.floor(now / 1000), 'version', 0, 'shelf', shelf_id, 'meta', meta,
  'retention', 'default', 'kept', now)
if title ~= '' then redis.call('HSET', conv_key, 'title', title) end
touch(conv, now)
keep(shelf)
return {'created'}

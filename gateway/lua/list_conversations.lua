#!lua flags=no-writes
-- A page of a person's conversations, the last used first.
--
-- KEYS   none; ARGV[1] makes them: reads convs, conv (types: keys.lua)
-- ARGV   owner, conversation after which the page begins or '', rank at which it begins when there is none, page size
-- result {rank after the page, ranks seen, {id, created, updated, version, meta, title, running}, ...}, or nothing when
--        `after` is unknown.
--        Conversations whose TTL is over are left out; the page is the last when fewer ranks were seen than its size.
-- include keys
local _, after, start, size = unpack(ARGV)
if after ~= '' then
  local rank = redis.call('ZREVRANK', convs_key, after)
  if not rank then return false end
  start = rank + 1
end
local ids = redis.call('ZREVRANGE', convs_key, start, start + size - 1)
local page = {start + #ids, #ids}
for _, conv in ipairs(ids) do
  local row = redis.call('HMGET', key('conv', conv), 'created', 'updated', 'version', 'meta', 'title', 'running')
  if row[1] then page[#page + 1] = {conv, unpack(row, 1, 6)} end
end
return page

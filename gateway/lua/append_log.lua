#!lua
-- Append entries to the stream logs of many turns in one step: the hot path.
--
-- KEYS   none; writes dm:stream:{owner}:{turn} STREAM, reads dm:turn:{owner}:{turn} HASH
-- ARGV   for each turn: "{owner}:{turn}", fence, number of the first entry, how many entries, the entries
-- result for each turn 1, 2 when its owner asked for its end, or 0 where the fence is no longer the turn's
-- An entry whose number is there already is skipped: safe to repeat. A log has a TTL from its first entry on, so that none
-- stays behind for ever; the turn's end sets a shorter one, which entries after the end keep.
local ABANDONED_SECONDS = 30 * 86400
local i, results = 1, {}
while i <= #ARGV do
  local name, fence, first, count = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  i = i + 4
  local turn = redis.call('HMGET', 'dm:turn:' .. name, 'fence', 'log', 'stop')
  local ours = turn[1] == fence
  if ours then
    local stream = 'dm:stream:' .. name
    for n = 0, count - 1 do
      local done = redis.pcall('XADD', stream, (first + n) .. '-0', 'e', ARGV[i + n])
      if type(done) == 'table' and not string.find(done.err, 'equal or smaller', 1, true) then return done end
    end
    if turn[2] or first == '1' then redis.call('EXPIRE', stream, turn[2] or ABANDONED_SECONDS) end
  end
  results[#results + 1] = ours and (turn[3] and 2 or 1) or 0
  i = i + count
end
return results

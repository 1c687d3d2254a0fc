-- The layout of what is stored of conversations and turns: every key, its type, its fields. Part of other scripts.
-- ARGV[1] is the owner; everything but dm:meta and dm:leases has the owner in its key, so that what belongs to somebody
-- else cannot even be named. Names are computed here: one Redis, no cluster. An owner or id never contains a colon.
--
--   dm:meta                HASH   data_version; restoring (while a restore runs: of which backup)
--   dm:conv:{u}:{conv}     HASH   created, updated (ms), version, shelf, meta (JSON, without the title), title, retention,
--                                 running (turn being written), kept (ms: when its turns' TTLs were last refreshed)
--   dm:order:{u}:{conv}    LIST   numbers of its items on the shelf; always ascending
--   dm:turns:{u}:{conv}    LIST   ids of its turns
--   dm:convs:{u}           ZSET   conversation ids by updated (ms)
--   dm:shelf:{u}:{shelf}   HASH   all content. n: highest number given; refs: how many conversations and turns without one
--                                 use it; <k>: item k; h<k>: its holders when more than one;
--                                 q<k>, r<k>: request and result of the turn whose input begins (or would) at k;
--                                 all packed (conversations/packing.py)
--   dm:turn:{u}:{turn}     HASH   no content. created, status, conv, prev, shelf, in, out ("3-4"; "3-2" is empty), fence,
--                                 holder, idem, retention, kept (without conversation); once finished log
--                                 (seconds its stream lives); until then reserve (how many numbers after `in` wait for its output),
--                                 undo ("version updated titled") and stop (its owner asked for its end)
--   dm:stream:{u}:{turn}   STREAM entry <number>-0, field e
--   dm:idem:{u}:{key}      STRING "turn digest"
--   dm:usage:{u}:{day}     HASH   prompt, completion, requests
--   dm:leases              ZSET   "{u}:{turn}" by expiry (ms)
--
-- Branches and chains of previous responses share their origin's shelf and its numbers. Holders of an item are the
-- conversations whose order names it, or the turn without a conversation that brought it; it goes with the last.
local function key(kind, id) return 'dm:' .. kind .. ':' .. ARGV[1] .. ':' .. id end
local convs_key = 'dm:convs:' .. ARGV[1]

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

#!lua flags=allow-oom
-- Leave the line, or give the seat back; safe to repeat.
--
-- KEYS   none; reads and writes dm:line:* and dm:used:*
-- ARGV   1-5 as in parts/line.lua, then for each request: id, tokens produced, prompt tokens that had to be read (-1: as
--        the request said)
-- result {"left", ids of this gateway that have a seat}
-- include quota
-- include line
bury()
for i = 6, #ARGV, 3 do
  local prompt = tonumber(ARGV[i + 2])
  go(ARGV[i], tonumber(ARGV[i + 1]), prompt >= 0 and prompt or nil)
end
dispatch()
return done('left')

#!lua flags=allow-oom
-- A gateway lives: prolong its lease, tell what its answers have come to, hear which requests have a seat.
--
-- KEYS   none; reads and writes dm:line:* and dm:used:*
-- ARGV   1-5 as in parts/line.lua, then lease (ms), 1 to register as a gateway that holds nothing yet, how many ids follow
--        that were heard to have a seat, these, then for each answer under way its id and its tokens
-- result {"ok" or "alone" (no other gateway is there), ids of this gateway that have a seat}, or {"lost"} when it must
--        register again
-- include quota
-- include line
if ARGV[7] ~= '1' and not known() then return {'lost'} end
bury()
redis.call('ZADD', 'dm:line:gateways', now + ARGV[6], gateway)
local heard = tonumber(ARGV[8])
for i = 9, 8 + heard do redis.call('SREM', 'dm:line:granted:' .. gateway, ARGV[i]) end
for i = 9 + heard, #ARGV, 2 do
  local request = request_of(ARGV[i])
  if request and request.seated then
    note(request, tonumber(ARGV[i + 1]), false, request.prompt)
    keep(ARGV[i], request)
  end
end
local since, served = now - clock.rate_at, clock.served - clock.rate_served
if since >= 1000 then
  local waited = since < LONGEST_READ_MS and somebody_waits()
  if waited and served > 0 then
    local rate = served * 1000 / since
    clock.rate = clock.rate == 0 and rate or clock.rate + NEWEST * (rate - clock.rate)
  end
  -- An engine that reads long prompts serves nothing for a while: that time belongs to what comes after it.
  if served > 0 or not waited then clock.rate_at, clock.rate_served = now, clock.served end
end
compare()
dispatch()
return done(redis.call('ZCARD', 'dm:line:gateways') == 1 and 'alone' or 'ok')

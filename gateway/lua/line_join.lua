#!lua flags=allow-oom
-- Take a place in line, and a seat where one is free; refused is what is past a limit of its person or key, and counted in
-- their minute what is not.
--
-- KEYS   none; reads and writes dm:line:* and dm:used:*, reads dm:limits:*
-- ARGV   1-5 as in parts/line.lua, then id, person, class (inter or flex), prompt tokens, most output tokens, weight
--        of a person who has none of their own,
--        how (new; promised: its answer has begun; seated: it is in flight, and we were taken for dead), the longest line
--        of a person, the longest wait (ms), key or "", what was counted of it before (nothing; request: it was accepted
--        and is neither refused nor counted again; prompt: that was read and paid for, too), the installation's limits (4;
--        "none" or a number, as in parts/quota.lua)
-- result {{"placed", ids of this gateway that have a seat}, now (ms), what then stands of each limit as in parts/quota.lua}.
--        Instead of "placed": {"lost"} when the gateway must register again; {"full", how many wait, their wait (ms, -1:
--        unknown)}; {"late", wait (ms)}; {"limit", which one of the list, wait for one of theirs to end (ms, -1: unknown)}
-- include quota
-- include line
local id, how, most, longest = ARGV[6], ARGV[12], tonumber(ARGV[13]), tonumber(ARGV[14])
local key, counted = ARGV[15] ~= '' and ARGV[15] or nil, ARGV[16]
local request = {
  who = ARGV[7], class = ARGV[8], gateway = gateway, prompt = tonumber(ARGV[9]), max = tonumber(ARGV[10]),
  weight = tonumber(redis.call('HGET', 'dm:limits:' .. ARGV[7], 'weight') or ARGV[11]), since = now, charged = 0, produced = 0, key = key, read = counted == 'prompt' or nil,
}
local balance = {}

local function refuse(...) return {{...}, now, balance} end

-- Which limit leaves nothing, if any does.
local function at_a_limit()
  local waiting = redis.call('LLEN', 'dm:line:inter:' .. request.who) + redis.call('LLEN', 'dm:line:flex:' .. request.who)
  local under_way = person_of(request.who).n + waiting
  for _, meter in ipairs(meters(request.who, key, now, {unpack(ARGV, 17, 20)}, under_way)) do
    if meter[2] >= 0 then balance[#balance + 1] = meter end
  end
  for which, meter in ipairs(balance) do
    if meter[3] >= meter[2] then return which end
  end
end

if not known() then return refuse('lost') end
bury()
save() -- whatever becomes of the request
if redis.call('HEXISTS', 'dm:line:requests', id) == 1 then return {done('placed'), now, balance} end
request.promised = how ~= 'new' or nil
if how == 'new' and counted == 'nothing' then
  local which = at_a_limit()
  if which then
    local wait = wait_for(0)
    return refuse('limit', which, wait and math.ceil(wait * 1000) or -1)
  end
end
if how == 'new' then
  local waiting = redis.call('LLEN', line_of(request))
  local cost = PROMPT * request.prompt + OUTPUT * expected(request)
  if waiting >= most then
    local wait = wait_for(cost * redis.call('ZCARD', ready_of(request)))
    return refuse('full', waiting, wait and math.ceil(wait * 1000) or -1)
  end
  if somebody_waits() then
    local ahead = waiting * redis.call('ZCARD', ready_of(request)) -- each of one's own lets everybody pass once
    if waiting == 0 then
      local counter = math.max(person_of(request.who)[request.class], clock[CLOCK[request.class]])
      ahead = redis.call('ZCOUNT', ready_of(request), '-inf', counter)
    end
    local wait = wait_for(cost * ahead)
    if wait and wait * 1000 > longest then return refuse('late', math.ceil(wait * 1000)) end
  end
end
if how == 'new' and counted == 'nothing' then
  count_both(request.who, key, now, 0, 1)
  for _, meter in ipairs(balance) do
    if meter[1] == 'requests_per_minute' or meter[1] == 'concurrency' then meter[3] = meter[3] + 1 end
  end
end
begin(request)
if how == 'seated' then
  local used, written = (redis.call('GETDEL', 'dm:line:paid:' .. id) or ''):match('^(%d+) (%d+)$')
  request.paid = tonumber(used or 0)
  keep(id, request)
  redis.call('SADD', 'dm:line:gateway:' .. gateway, id)
  seat(id, request, false, tonumber(written))
else
  come(id, request)
  dispatch()
end
return {done('placed'), now, balance}

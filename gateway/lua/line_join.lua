#!lua flags=allow-oom
-- Take a place in line, and a seat where one is free.
--
-- KEYS   none; reads and writes dm:line:*
-- ARGV   1-5 as in parts/line.lua, then id, person, class (inter or flex), prompt tokens, most output tokens, weight,
--        how (new; promised: its answer has begun; seated: it is in flight, and we were taken for dead), the longest line
--        of a person, the longest wait (ms)
-- result {"placed", ids of this gateway that have a seat}, {"lost"} when the gateway must register again,
--        {"full", how many wait, their wait (ms, -1: unknown)} or {"late", wait (ms)}
-- include line
local id, how, most, longest = ARGV[6], ARGV[12], tonumber(ARGV[13]), tonumber(ARGV[14])
local request = {
  who = ARGV[7], class = ARGV[8], gateway = gateway, prompt = tonumber(ARGV[9]), max = tonumber(ARGV[10]),
  weight = tonumber(ARGV[11]), since = now, charged = 0, produced = 0,
}
if not known() then return {'lost'} end
bury()
save() -- whatever becomes of the request
if redis.call('HEXISTS', 'dm:line:requests', id) == 1 then return done('placed') end
request.promised = how ~= 'new' or nil
if how == 'new' then
  local waiting = redis.call('LLEN', line_of(request))
  local cost = PROMPT * request.prompt + OUTPUT * expected(request)
  if waiting >= most then
    local wait = wait_for(cost * redis.call('ZCARD', ready_of(request)))
    return {'full', waiting, wait and math.ceil(wait * 1000) or -1}
  end
  if waiting == 0 and somebody_waits() then
    local counter = math.max(person_of(request.who)[request.class], clock[CLOCK[request.class]])
    local wait = wait_for(cost * redis.call('ZCOUNT', ready_of(request), '-inf', counter))
    if wait and wait * 1000 > longest then return {'late', math.ceil(wait * 1000)} end
  end
end
begin(request)
if how == 'seated' then
  keep(id, request)
  redis.call('SADD', 'dm:line:gateway:' .. gateway, id)
  seat(id, request)
else
  come(id, request)
  dispatch()
end
return done('placed')

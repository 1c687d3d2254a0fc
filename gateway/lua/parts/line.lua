-- The line in front of the engine, which all gateways share: who gets the next seat. Part of other scripts.
-- ARGV[1] now (ms; 0: Redis' own clock), ARGV[2] the gateway, ARGV[3] seats, ARGV[4] how many of them are kept,
-- ARGV[5] KV tokens (0: unknown). Names are computed here: one Redis, no cluster.
--
--   dm:line:clock          HASH  v, v_flex: the virtual clock of each class; inter, flex: what it was given; flying: requests
--                                in flight; reserved: their KV tokens; served: all that was ever given; came: requests that
--                                ever stood in line; jain, largest, among: how evenly the last minute went, begun at
--                                compared_at (ms); mean: output of an answer; rate: what is served in a second, measured at rate_at (ms) with rate_served
--   dm:line:people         HASH  person: a counter for each class, which one the oldest of theirs in its line is, expected
--                                output e, requests in flight n (packed)
--   dm:line:requests       HASH  id: who, how large, since when, what is charged already (packed)
--   dm:line:ready:{class}  ZSET  people with somebody waiting, by counter, and among equals by who came first
--   dm:line:{class}:{u}    LIST  ids of a person's waiting requests, the oldest first
--   dm:line:promised       LIST  ids of answers that have begun already: before everybody
--   dm:line:light          ZSET  people who came with nothing else in line or in flight, by when (ms)
--   dm:line:gateways       ZSET  gateways by the end of their lease (ms)
--   dm:line:gateway:{gw}   SET   ids of a gateway's requests;  dm:line:granted:{gw}: which of them have a seat, not told yet
--   dm:line:paid:{id}      STRING what was used and what was written of a request whose gateway died, as it was charged: that
--                                may only have been slow
--   dm:line:hungry         HASH  who had something waiting (inter) all the time since compared_at: their counter then
--
-- Whoever was given least, by tokens and weight, is next: the virtual token counter of Sheng et al. (OSDI 2024, arXiv
-- 2401.00588), with a virtual clock as join rule (who comes back is not owed what they never asked for) and the expected
-- cost charged up front, corrected by the real one.
local PROMPT, OUTPUT = 1, 2 -- what a token costs
local FIRST_GUESS = 128 -- tokens of an answer, before there was one
local NEWEST = 0.2 -- weight of the newest in a moving average
local LIGHT_MS = 60000 -- so long seats are kept for people like the one that was seen
local PASSED_MS = 2000 -- so long a request that is too large for what is free may be passed by smaller ones
local PAID_SECONDS = 3600 -- so long a gateway that was only slow may bring back what it holds, without paying twice
local COMPARED_MS = 60000 -- so long a time is looked at, to see how evenly it went
local AHEAD = 4096 -- so much more than their share people may have had and still take a kept seat: a request or two
local LONGEST_READ_MS = 60000 -- so long an engine may read prompts and serve nothing, before that time is left out
local FLOOR = 0.1 -- of the service, for flex while it waits
local CLOCK = {inter = 'v', flex = 'v_flex'} -- each class is a line of its own

local now = tonumber(ARGV[1])
if now == 0 then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
local gateway, seats, kept, kv = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])

-- what is read and written whole -----------------------------------------------------------------------------------
local NAMES = {
  'v', 'v_flex', 'inter', 'flex', 'flying', 'reserved', 'served', 'came', 'mean', 'rate', 'rate_at', 'rate_served',
  'jain', 'largest', 'among', 'compared_at',
}
local clock, people, touched = {}, {}, {}
for i, value in ipairs(redis.call('HMGET', 'dm:line:clock', unpack(NAMES))) do
  clock[NAMES[i]] = tonumber(value or 0)
end

local function person_of(name)
  if not people[name] then
    local packed = redis.call('HGET', 'dm:line:people', name)
    people[name] = packed and cmsgpack.unpack(packed) or {inter = 0, flex = 0, n = 0}
  end
  touched[name] = true
  return people[name]
end

local function request_of(id)
  local packed = redis.call('HGET', 'dm:line:requests', id)
  return packed and cmsgpack.unpack(packed)
end

local function keep(id, request)
  redis.call('HSET', 'dm:line:requests', id, cmsgpack.pack(request))
end

local function line_of(request) return 'dm:line:' .. request.class .. ':' .. request.who end

local function ready_of(request) return 'dm:line:ready:' .. request.class end

-- As which one of all that ever came the oldest request of theirs in this line did; nil when they have none in it.
local FIRST = {inter = 'inter_first', flex = 'flex_first'}
local DIGITS = 13

local function waits(name, class) return person_of(name)[FIRST[class]] ~= nil end

-- How a person is called among those who wait, so that who came first is first among equals.
local function member(name, class) return string.format('%0' .. DIGITS .. 'd', person_of(name)[FIRST[class]]) .. name end

local function name_of(member) return member:sub(DIGITS + 1) end

-- After the oldest of a person's requests in a line has come or gone.
local function stand(name, class)
  local person, ready = person_of(name), 'dm:line:ready:' .. class
  if waits(name, class) then redis.call('ZREM', ready, member(name, class)) end
  local id = redis.call('LINDEX', 'dm:line:' .. class .. ':' .. name, 0)
  person[FIRST[class]] = id and request_of(id).came or nil
  if id then
    redis.call('ZADD', ready, person[class], member(name, class))
  elseif class == 'inter' then
    redis.call('HDEL', 'dm:line:hungry', name)
  end
end

local function save()
  local flat = {}
  for _, name in ipairs(NAMES) do
    flat[#flat + 1] = name
    flat[#flat + 1] = clock[name]
  end
  redis.call('HSET', 'dm:line:clock', unpack(flat))
  for name in pairs(touched) do
    redis.call('HSET', 'dm:line:people', name, cmsgpack.pack(people[name]))
  end
end

-- Write back, and tell this gateway which of its requests have a seat.
local function done(word)
  save()
  return {word, unpack(redis.call('SMEMBERS', 'dm:line:granted:' .. gateway))}
end

-- what it costs ------------------------------------------------------------------------------------------------------
local function expected(request)
  local guess = person_of(request.who).e or (clock.mean > 0 and clock.mean) or FIRST_GUESS
  return math.min(request.max, math.ceil(guess))
end

local function charge(request, cost)
  local person, class = person_of(request.who), request.class
  person[class] = person[class] + cost / request.weight
  clock[class] = clock[class] + cost
  if waits(request.who, class) then -- who is next may be asked in this very step
    redis.call('ZADD', ready_of(request), person[class], member(request.who, class))
  end
end

-- Bring what is charged up to what was produced; beyond it only at the end, when less may be given back.
local function note(request, produced, final, prompt)
  local real = PROMPT * prompt + OUTPUT * produced
  if final or real > request.charged then
    charge(request, real - request.charged)
    request.charged = real
  end
  clock.served = clock.served + OUTPUT * math.max(0, produced - request.produced)
  request.produced = math.max(produced, request.produced)
end

-- who is next ----------------------------------------------------------------------------------------------------------
local function need(request)
  return request.prompt + math.min(request.max, 2 * expected(request))
end

-- `paid`: tokens that were written and charged already, with the prompt.
local function seat(id, request, kept_one, paid)
  local person, v = person_of(request.who), CLOCK[request.class]
  if not (request.promised or kept_one) then clock[v] = math.max(clock[v], person[request.class]) end
  request.seated, request.reserved = now, need(request)
  if paid then
    request.charged, request.produced = PROMPT * request.prompt + OUTPUT * paid, paid
  else
    request.charged = PROMPT * request.prompt + (request.promised and 0 or OUTPUT * expected(request))
    charge(request, request.charged)
    clock.served = clock.served + PROMPT * request.prompt
  end
  clock.flying, clock.reserved = clock.flying + 1, clock.reserved + request.reserved
  person.n = person.n + 1
  keep(id, request)
  redis.call('SADD', 'dm:line:granted:' .. request.gateway, id)
end

-- Seats are kept, from everybody alike, while two people are there of whom one was light.
local function kept_now()
  local light = redis.call('ZRANGE', 'dm:line:light', 0, 1)
  if #light ~= 1 then return #light == 0 and 0 or kept end
  local others = clock.flying - person_of(light[1]).n
  for _, class in ipairs({'inter', 'flex'}) do
    others = others + redis.call('ZCARD', 'dm:line:ready:' .. class)
    if waits(light[1], class) then others = others - 1 end
  end
  return others > 0 and kept or 0
end

-- Also whether it would be on a kept seat.
local function may_start(name, class)
  if clock.flying < seats - kept_now() then return true, false end
  local person = person_of(name)
  return class == 'inter' and person.n == 0 and person.inter <= clock.v + AHEAD, true
end

-- The one with the smallest counter that may start. True instead: everybody waits until there is memory for somebody.
local function next_of(class)
  local from = 0
  while true do
    local members = redis.call('ZRANGE', 'dm:line:ready:' .. class, from, from + 15)
    for _, one in ipairs(members) do
      local name = name_of(one)
      local may, kept_one = may_start(name, class)
      if may then
        local id = redis.call('LINDEX', 'dm:line:' .. class .. ':' .. name, 0)
        local request = request_of(id)
        if kv == 0 or clock.flying == 0 or clock.reserved + need(request) <= kv then return id, request, kept_one end
        request.passed = request.passed or now
        keep(id, request)
        if now - request.passed > PASSED_MS then return true end
      end
    end
    if #members < 16 then return end
    from = from + 16
  end
end

local function leave_line(id, request)
  redis.call('LREM', line_of(request), 1, id)
  stand(request.who, request.class)
end

local function dispatch()
  redis.call('ZREMRANGEBYSCORE', 'dm:line:light', '-inf', now - LIGHT_MS)
  while clock.flying < seats do
    local id = redis.call('LPOP', 'dm:line:promised')
    if id then
      seat(id, request_of(id))
    else
      local first, second = 'inter', 'flex'
      if clock.flex * (1 - FLOOR) < clock.inter * FLOOR then first, second = 'flex', 'inter' end
      local request, kept_one
      id, request, kept_one = next_of(first)
      if not id then id, request, kept_one = next_of(second) end
      if not request then return end
      leave_line(id, request)
      seat(id, request, kept_one)
    end
  end
end

-- coming and going -------------------------------------------------------------------------------------------------------
-- Who has nothing waiting begins at the clock, also with something in flight: nobody is owed what they did not ask for.
local function begin(request)
  if waits(request.who, request.class) then return end
  local person, class = person_of(request.who), request.class
  person[class] = math.max(person[class], clock[CLOCK[class]])
end

local function come(id, request)
  local who = request.who
  if not request.promised then
    clock.came = clock.came + 1
    request.came = clock.came
  end
  keep(id, request)
  redis.call('SADD', 'dm:line:gateway:' .. request.gateway, id)
  if request.promised then return redis.call('RPUSH', 'dm:line:promised', id) end
  local has_anything = waits(who, 'inter') or waits(who, 'flex') or person_of(who).n > 0
  if request.class == 'inter' and not has_anything then redis.call('ZADD', 'dm:line:light', now, who) end
  if redis.call('EXISTS', ready_of(request)) == 0 then -- a class that comes back is not owed what it never asked for either
    if request.class == 'flex' then
      clock.flex = math.max(clock.flex, clock.inter * FLOOR / (1 - FLOOR))
    else
      clock.inter = math.max(clock.inter, clock.flex * (1 - FLOOR) / FLOOR)
    end
  end
  redis.call('RPUSH', line_of(request), id)
  if not waits(who, request.class) then stand(who, request.class) end
end

-- `produced` nil: as far as it was told; `prompt`: tokens of it that had to be read. Needs parts/quota.lua: what was used is
-- counted here, once for each request. Returns how much that was, and how much was written, of one that had a seat.
local function go(id, produced, prompt)
  local request = request_of(id)
  if not request then return end
  redis.call('HDEL', 'dm:line:requests', id)
  redis.call('SREM', 'dm:line:gateway:' .. request.gateway, id)
  redis.call('SREM', 'dm:line:granted:' .. request.gateway, id)
  if not request.seated then
    if request.promised then redis.call('LREM', 'dm:line:promised', 1, id) else leave_line(id, request) end
    return
  end
  note(request, produced or request.produced, true, prompt or request.prompt)
  local person = person_of(request.who)
  person.n = math.max(0, person.n - 1)
  clock.flying = math.max(0, clock.flying - 1)
  clock.reserved = math.max(0, clock.reserved - request.reserved)
  if produced and produced > 0 then
    local old, mean = person.e or produced, clock.mean > 0 and clock.mean or produced
    person.e = old + NEWEST * (produced - old)
    clock.mean = mean + NEWEST * (produced - mean)
  end
  local used = (request.read and 0 or prompt or request.prompt) + (produced or request.produced)
  count_both(request.who, request.key, now, math.max(0, used - (request.paid or 0)), 0)
  return used, produced or request.produced
end

-- Other gateways whose lease ended: what they had is given back, charged as far as it was told.
local function bury()
  for _, dead in ipairs(redis.call('ZRANGEBYSCORE', 'dm:line:gateways', '-inf', now)) do
    if dead ~= gateway then
      for _, id in ipairs(redis.call('SMEMBERS', 'dm:line:gateway:' .. dead)) do
        local used, written = go(id)
        if used then redis.call('SET', 'dm:line:paid:' .. id, used .. ' ' .. written, 'EX', PAID_SECONDS) end
      end
      redis.call('ZREM', 'dm:line:gateways', dead)
    end
  end
end

local function somebody_waits() return redis.call('EXISTS', 'dm:line:ready:inter', 'dm:line:ready:flex') > 0 end

-- How evenly people were served who wanted more for a whole minute: Jain's index of what they were given by weight (1: all
-- alike; 1/n: one of n had everything; Jain, Chiu, Hawe 1984), and the largest share. Then a new minute begins.
local function compare()
  if now - clock.compared_at < COMPARED_MS then return end
  local sum, squares, most, n = 0, 0, 0, 0
  local began = redis.call('HGETALL', 'dm:line:hungry')
  for i = 1, #began, 2 do
    local given = person_of(began[i]).inter - tonumber(began[i + 1])
    sum, squares, most, n = sum + given, squares + given * given, math.max(most, given), n + 1
  end
  clock.among = n
  clock.jain = squares > 0 and sum * sum / (n * squares) or 1
  clock.largest = sum > 0 and most / sum or 0
  clock.compared_at = now
  redis.call('DEL', 'dm:line:hungry')
  for _, one in ipairs(redis.call('ZRANGE', 'dm:line:ready:inter', 0, -1)) do
    redis.call('HSET', 'dm:line:hungry', name_of(one), person_of(name_of(one)).inter)
  end
end

local function known() return redis.call('ZSCORE', 'dm:line:gateways', gateway) end

-- Seconds until `ahead` (service) is done and one of those in flight has ended; nil while nothing is known.
local function wait_for(ahead)
  if clock.rate <= 0 or seats <= 0 then return nil end
  local each = OUTPUT * (clock.mean > 0 and clock.mean or FIRST_GUESS)
  return (ahead + each) / clock.rate
end

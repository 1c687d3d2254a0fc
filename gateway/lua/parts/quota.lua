-- What people and keys may use, and what they have used. Part of other scripts.
-- A count stands beside the number of its day, month or minute (UTC): in the next one it is over, by itself.
--
--   dm:limits:{id}  HASH  tokens_per_day, tokens_per_month, requests_per_minute, concurrency: a number, or none (no limit).
--                         What is not there is the installation's for a person, and no limit for a key
--                         weight: of a person in the line; without it what the request says
--   dm:used:{id}    HASH  day, month, minute: which one it is; day_tokens, month_tokens, minute_requests: used in it
local KINDS = {'tokens_per_day', 'tokens_per_month', 'requests_per_minute', 'concurrency'}
local USED_SECONDS = 40 * 86400 -- longer than any month

-- The numbers of the day, the month and the minute. Years begin in March here (H. Hinnant, "chrono-Compatible Low-Level
-- Date Algorithms"): then the days before a month follow a formula.
local function periods(now)
  local day = math.floor(now / 86400000)
  local era = math.floor((day + 719468) / 146097)
  local of_era = day + 719468 - era * 146097
  local years = math.floor(
    (of_era - math.floor(of_era / 1460) + math.floor(of_era / 36524) - math.floor(of_era / 146096)) / 365
  )
  local of_year = of_era - (365 * years + math.floor(years / 4) - math.floor(years / 100))
  return {day, (era * 400 + years) * 12 + math.floor((5 * of_year + 2) / 153), math.floor(now / 60000)}
end

-- Tokens of this day and this month, requests of this minute; and which these are.
local function used_by(id, now)
  local found = redis.call(
    'HMGET', 'dm:used:' .. id, 'day', 'month', 'minute', 'day_tokens', 'month_tokens', 'minute_requests'
  )
  local at, used = periods(now), {}
  for i = 1, 3 do used[i] = tonumber(found[i]) == at[i] and tonumber(found[i + 3]) or 0 end
  return used, at
end

local function count(id, now, tokens, requests)
  local used, at = used_by(id, now)
  redis.call(
    'HSET', 'dm:used:' .. id, 'day', at[1], 'month', at[2], 'minute', at[3],
    'day_tokens', used[1] + tokens, 'month_tokens', used[2] + tokens, 'minute_requests', used[3] + requests
  )
  redis.call('EXPIRE', 'dm:used:' .. id, USED_SECONDS)
end

local function count_both(who, key, now, tokens, requests)
  count(who, now, tokens, requests)
  if key then count(key, now, tokens, requests) end
end

-- What holds for a person, and what holds for the key beside it: {kind, limit (-1: none), used, whose}. `under_way`: how
-- many requests of the person wait or run.
local function meters(who, key, now, defaults, under_way)
  local result, own, used = {}, redis.call('HMGET', 'dm:limits:' .. who, unpack(KINDS)), used_by(who, now)
  used[4] = under_way
  for i, kind in ipairs(KINDS) do
    result[i] = {kind, tonumber(own[i] or defaults[i]) or -1, used[i], own[i] and 'person' or 'installation'}
  end
  if key then
    own = redis.call('HMGET', 'dm:limits:' .. key, unpack(KINDS, 1, 3))
    for i = 1, 3 do
      if own[i] then result[#result + 1] = {KINDS[i], tonumber(own[i]) or -1, used_by(key, now)[i], 'key'} end
    end
  end
  return result
end

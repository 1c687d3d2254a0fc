-- Items on a shelf, by number. `shelf` is the shelf's key. Part of other scripts.

-- Write ARGV[from..] under the numbers from `first` on; gives the last (first - 1 when there is none).
local function put_at(shelf, first, from)
  for i = from, #ARGV do redis.call('HSET', shelf, first + i - from, ARGV[i]) end
  return first + #ARGV - from
end

-- The same under the next numbers; gives the first and the last.
local function put(shelf, from)
  local count = #ARGV - from + 1
  local first = redis.call('HINCRBY', shelf, 'n', count) - count + 1
  return first, put_at(shelf, first, from)
end

-- A stored range "3-4" as two numbers.
local function range(text)
  local first, last = string.match(text, '^(%d+)-(%d+)$')
  return tonumber(first), tonumber(last)
end

-- Append the numbers of a stored range to a list.
local function extend(numbers, text)
  if not text then return end
  local first, last = range(text)
  for n = first, last do numbers[#numbers + 1] = n end
end

-- The items that still exist, as number, item, number, item ...
local function fetch(shelf, numbers)
  local items = {}
  for start = 1, #numbers, 500 do
    local stop = math.min(start + 499, #numbers)
    for i, body in ipairs(redis.call('HMGET', shelf, unpack(numbers, start, stop))) do
      if body then
        items[#items + 1] = tonumber(numbers[start + i - 1])
        items[#items + 1] = body
      end
    end
  end
  return items
end

local function hold(shelf, numbers)
  for _, n in ipairs(numbers) do
    if redis.call('HINCRBY', shelf, 'h' .. n, 1) == 1 then redis.call('HSET', shelf, 'h' .. n, 2) end
  end
end

local function release(shelf, numbers)
  for _, n in ipairs(numbers) do
    local holders = tonumber(redis.call('HGET', shelf, 'h' .. n) or 1)
    if holders == 1 then redis.call('HDEL', shelf, n)
    elseif holders == 2 then redis.call('HDEL', shelf, 'h' .. n)
    else redis.call('HINCRBY', shelf, 'h' .. n, -1) end
  end
end

-- One user of the shelf less; the last one takes it along. Numbers are never given twice while somebody uses it.
local function leave(shelf)
  if redis.call('HINCRBY', shelf, 'refs', -1) <= 0 then redis.call('UNLINK', shelf) end
end

-- Whether the data still has the version that a step starts from: another process may have finished the step, and the
-- next one, since this one looked. Part of other scripts; every script of a step asks before it changes anything.
local function still_at(version) return redis.call('HGET', 'dm:meta', 'data_version') == version end

"""Lua scripts of the Redis store: one per operation, atomic, on the server's clock.

Instants and durations are whole microseconds. Every script returns ``false``, which arrives as ``None``, if it finds a
value of another format.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from redis.exceptions import NoScriptError

from pay88_adapters.core.secret import clear_traceback_locals


class Script:
    """A Lua script, sent in full only to a server that does not know it."""

    def __init__(self, *parts: str) -> None:
        self._text = "".join(parts)
        self._digest = hashlib.sha1(self._text.encode(), usedforsecurity=False).hexdigest()

    def __call__(self, client: Any, keys: Sequence[str], *args: object) -> Any:
        try:
            return client.evalsha(self._digest, len(keys), *keys, *args)
        except NoScriptError as error:  # new, restarted, failed over or flushed
            clear_traceback_locals(error)  # a cycle of frames would keep them, and what was sent, for long
            return client.eval(self._text, len(keys), *keys, *args)


_BASICS = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local function whole(text) return text and string.find(text, '^%d+$') and tonumber(text) end
local function digits(number) return string.format('%.0f', number) end
"""

# A history is a string: for how long it is kept, then instant:id of each entry, in any order. It is returned as it is
# and parsed by the caller: a history of API requests is long, and all clients of the server wait for a script.
_HISTORY = """
local function load(key)
  local keep, old = string.match(redis.call('GET', key) or '0', '^(%d+)(.*)$')
  if not keep then return nil end
  keep = tonumber(keep)
  local instants, length = {}, 0
  local text = string.gsub(old, ' (%d+):([%w_#%-%.]+)', function(at, id)
    local instant, replaced = tonumber(at), nil
    if now - instant > keep then return '' end
    if instant > now then
      -- The clock was set back. An entry from the future counts from now on, not for as long as that.
      instant, at = now, digits(now)
      replaced = ' ' .. at .. ':' .. id
    end
    instants[#instants + 1] = instant
    length = length + #at + #id + 2
    return replaced
  end)
  if #text ~= length then return nil end
  return {keep = keep, text = text, instants = instants, changed = text ~= old}
end
local function holds(history, id) return string.find(history.text .. ' ', ':' .. id .. ' ', 1, true) end
local function add(history, at, id)
  if now - at <= history.keep and not holds(history, id) then
    at, history.changed = math.min(at, now), true
    history.text = history.text .. ' ' .. digits(at) .. ':' .. id
    table.insert(history.instants, at)
  end
end
local function save(key, history)
  if not history.changed then return end
  redis.call('SET', key, digits(history.keep) .. history.text, 'PX', digits(math.ceil(history.keep / 1000) + 1))
end
local function keep(history, micros)
  if micros > history.keep then history.keep, history.changed = micros, #history.instants > 0 end
end
local function load_cooldown(key)
  local at, seconds, reason = unpack(redis.call('HMGET', key, 'at', 'seconds', 'reason'))
  at, seconds = whole(at), whole(seconds)
  if not (at and seconds and reason) then return nil end
  at = math.min(at, now)
  if now - at >= seconds then return nil end
  return {seconds, now - at, reason}
end
"""

# KEYS: the histories, then their cooldowns. ARGV: seconds to keep them, cap of a cooldown, number of
# windows there are and of each the history, the limit and the expiry; how many ids and which; then for each history
# how many entries the caller knows, and of each its id and its age
ACQUIRE = Script(
    _BASICS,
    _HISTORY,
    """
local n, position = #KEYS / 2, 0
local function argument() position = position + 1; return ARGV[position] end
local function number() return tonumber(argument()) end
local kept, most, histories, windows, ids, granted, longest = number(), number(), {}, {}, {}, 1, nil
for i = 1, number() do windows[i] = {number(), number(), number()} end
for i = 1, number() do ids[i] = argument() end
for i = 1, n do
  local history = load(KEYS[i])
  if not history then return false end
  keep(history, kept)
  for _ = 1, number() do
    local id = argument()
    add(history, now - number(), id)
  end
  histories[i] = history
  local cooldown = load_cooldown(KEYS[n + i])
  if cooldown and (not longest or cooldown[1] - cooldown[2] > longest[1] - longest[2]) then longest = cooldown end
end
if longest and math.min(longest[1], most) > longest[2] then
  granted = 0
else
  local again = #ids > 0
  for _, history in ipairs(histories) do
    for _, id in ipairs(ids) do again = again and holds(history, id) end
  end
  if not again then
    for _, window in ipairs(windows) do
      local counted = 0
      for _, instant in ipairs(histories[window[1]].instants) do
        if now - instant <= window[3] then counted = counted + 1 end
      end
      if counted + #ids > window[2] then granted = 0 end
    end
  end
end
local texts = {}
for i, history in ipairs(histories) do
  if granted == 1 then
    for _, id in ipairs(ids) do add(history, now, id) end
  end
  save(KEYS[i], history)
  texts[i] = history.text
end
return {now, granted, texts, longest or {}}
""",
)

# ARGV: for how long to keep them, then of each entry its id and its age
MERGE = Script(
    _BASICS,
    _HISTORY,
    """
local history = load(KEYS[1])
if not history then return false end
keep(history, tonumber(ARGV[1]))
for i = 2, #ARGV, 2 do add(history, now - tonumber(ARGV[i + 1]), ARGV[i]) end
save(KEYS[1], history)
return 1
""",
)

HISTORY = Script(
    _BASICS,
    _HISTORY,
    """
local history = load(KEYS[1])
if not history then return false end
save(KEYS[1], history)
return {now, history.text}
""",
)

# ARGV: seconds, age, reason; without any, it only returns the current one
COOLDOWN = Script(
    _BASICS,
    _HISTORY,
    """
local current = load_cooldown(KEYS[1])
if not ARGV[1] then return current or {} end
local seconds, age = tonumber(ARGV[1]), tonumber(ARGV[2])
if seconds > age and (not current or current[1] - current[2] < seconds - age) then
  redis.call('HSET', KEYS[1], 'at', digits(now - age), 'seconds', ARGV[1], 'reason', ARGV[3])
  redis.call('PEXPIRE', KEYS[1], digits(math.ceil((seconds - age) / 1000) + 1))
end
return 1
""",
)

# Each loader returns nothing if there is none, and "malformed" as its second result for one of another format.
_RECORD = """
local function is_current(at, till) return at <= now and now < till end
local function load_record(key, known_version)
  local version, at, till, content, stored =
    unpack(redis.call('HMGET', key, 'version', 'at', 'until', 'content', 'stored'))
  if not version or version == known_version then return nil end
  version, at, till, stored = whole(version), whole(at), whole(till), whole(stored) or now
  if not (version and at and till and content) then return nil, 'malformed' end
  if is_current(at, till) then return {version, now - at, content, math.max(now - stored, 0)} end
end
local function load_lease(key, requester)
  local owner, at, till = unpack(redis.call('HMGET', key, 'owner', 'at', 'until'))
  if not owner or owner == requester then return nil end
  at, till = whole(at), whole(till)
  if not (at and till) then return nil, 'malformed' end
  if is_current(at, till) then return {owner, till - now} end
end
"""

_KEEP = """
local function keep_for(key, milliseconds)
  if redis.call('PTTL', key) < tonumber(milliseconds) then redis.call('PEXPIRE', key, milliseconds) end
end
"""

# members.assigned_divisor(), in one step with the shares of all members. Returns the divisor, the other members, and
# how long ago the last lease attempt was, or -1 for none.
_MEMBERS = """
local function assign_share(attempts, divisors, member, horizon, grace, growth_interval, first_divisor, max_members)
  if member == '' then return {0, {}, -1} end
  local attempted_at, before = redis.call('ZSCORE', attempts, member), whole(redis.call('HGET', divisors, member))
  attempted_at = attempted_at and tonumber(attempted_at)
  if not attempted_at or now - attempted_at >= horizon or before == 0 then before = nil end
  -- First, because a full server denies it: after another write, it would execute the whole script.
  redis.call('ZADD', attempts, digits(now), member)
  redis.call('ZREMRANGEBYSCORE', attempts, '-inf', digits(now - horizon))
  local count, free, divisor, others = redis.call('ZCARD', attempts), 1, 0, {}
  if count <= max_members then
    local all = redis.call('HGETALL', divisors)
    for i = 1, #all, 2 do
      local name, at, other_divisor = all[i], redis.call('ZSCORE', attempts, all[i]), whole(all[i + 1])
      if not at then
        redis.call('HDEL', divisors, name)
      elseif name ~= member and other_divisor and other_divisor > 0 then
        local age = math.max(now - tonumber(at), 0)
        free = free - (1 - math.max(age - grace, 0) / (horizon - grace)) / other_divisor
        table.insert(others, {name, age, other_divisor})
      end
    end
    local least = count
    if before then
      local next_divisor = now - attempted_at < growth_interval and before or math.ceil(before / 2)
      least = math.max(least, math.min(first_divisor, next_divisor))
    else
      least = math.max(least, first_divisor)
      if free * first_divisor < 1 - 1e-9 then free = free / 2 end
    end
    if free * max_members >= 1 then divisor = math.max(least, math.ceil(1 / free - 1e-9)) end
  end
  if divisor > 0 then
    redis.call('HSET', divisors, member, digits(divisor))
  else
    redis.call('HDEL', divisors, member)
  end
  local twice_the_horizon = digits(2 * horizon / 1000) -- in milliseconds
  for _, key in ipairs({attempts, divisors}) do redis.call('PEXPIRE', key, twice_the_horizon) end
  return {divisor, others, before and now - attempted_at or -1}
end
"""

# KEYS: fencing tokens, content, last lease attempts, divisors of the shares. ARGV: owner, known version, lease, for how
# many milliseconds to keep the fencing token, member, for how long it is one, for how long its share is whole, after
# how long it grows, its first divisor, how many members there can be
ACQUIRE_LEASE = Script(
    _BASICS,
    _RECORD,
    _KEEP,
    _MEMBERS,
    """
local share = assign_share(KEYS[3], KEYS[4], ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8]),
                           tonumber(ARGV[9]), tonumber(ARGV[10]))
local record, record_is = load_record(KEYS[2], ARGV[2])
if record_is == 'malformed' then return false end
if record then return {share, 0, unpack(record)} end
local lease, lease_is = load_lease(KEYS[1], ARGV[1])
if lease_is == 'malformed' then return false end
if lease then return {share, 1, lease[2]} end
local fence = redis.call('HGET', KEYS[1], 'fences')
if fence then
  fence = whole(fence)
  if not fence then return false end
else
  -- Not from 1: no fencing token from before a loss of all data may be issued again.
  fence = now - 1
  redis.call('HSET', KEYS[1], 'version', digits(fence))
end
-- Nor one that a replica had not received before it took over.
fence = math.max(fence + 1, now)
redis.call('HSET', KEYS[1], 'fences', digits(fence), 'owner', ARGV[1],
           'at', digits(now), 'until', digits(now + ARGV[3]))
keep_for(KEYS[1], ARGV[4])
return {share, 2, fence}
""",
)

# KEYS: last lease attempts. ARGV: member, whose share the next lease attempt deletes. ZREM may be denied to the user
REMOVE_MEMBER = Script(
    """
redis.call('ZADD', KEYS[1], '-inf', ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '-inf')
return 1
"""
)

# ARGV: fencing token, for how many microseconds to keep, how many after the lease was given the content was written,
# for how many milliseconds to keep, for how many to keep the fencing token, content
PUBLISH = Script(
    _BASICS,
    _KEEP,
    """
local fence = tonumber(ARGV[1])
local last_fence, version, at = unpack(redis.call('HMGET', KEYS[1], 'fences', 'version', 'at'))
if not last_fence then return 0 end
last_fence, version = whole(last_fence), whole(version)
if not (last_fence and version) then return false end
if fence <= version or fence ~= last_fence then return 0 end
at = whole(at)
if not at then return false end
redis.call('HSET', KEYS[1], 'version', ARGV[1])
redis.call('HDEL', KEYS[1], 'owner', 'at', 'until')
keep_for(KEYS[1], ARGV[5])
redis.call('DEL', KEYS[2])
at = math.min(at + ARGV[3], now)
redis.call('HSET', KEYS[2], 'version', ARGV[1], 'at', digits(at), 'stored', digits(now),
           'until', digits(now + ARGV[2]), 'content', ARGV[6])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return 1
""",
)

PEEK = Script(
    _BASICS,
    _RECORD,
    """
local record, record_is = load_record(KEYS[2])
local lease, lease_is = load_lease(KEYS[1])
if record_is == 'malformed' or lease_is == 'malformed' then return false end
return {record or {}, lease or {}}
""",
)

"""What the Redis store runs on the server: one script an operation, atomic, on the server's clock.

Instants and durations are whole microseconds. Every script answers ``false``, which arrives as ``None``,
if what it finds is not its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from redis.exceptions import NoScriptError

from pay88_adapters.secret import forget_locals


class Script:
    """A Lua script, sent in full only to a server that does not know it."""

    def __init__(self, *parts: str) -> None:
        self._text = "".join(parts)
        self._digest = hashlib.sha1(self._text.encode(), usedforsecurity=False).hexdigest()

    def __call__(self, client: Any, keys: Sequence[str], *args: object) -> Any:
        try:
            return client.evalsha(self._digest, len(keys), *keys, *args)
        except NoScriptError as error:  # new, restarted, failed over or flushed
            forget_locals(error)  # a cycle of frames would keep them, and what was sent, for long
            return client.eval(self._text, len(keys), *keys, *args)


_BASICS = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local function whole(text) return text and string.find(text, '^%d+$') and tonumber(text) end
local function digits(number) return string.format('%.0f', number) end
"""

_ENTRIES = """
local function save(key, entries, expiry)
  local texts = {}
  for i, at in ipairs(entries) do texts[i] = digits(at) end
  redis.call('SET', key, table.concat(texts, ' '), 'PX', digits(math.ceil(expiry / 1000) + 1))
end
local function live(key, expiry)
  local text, entries, newest = redis.call('GET', key) or '', {}, 0
  if string.find(text, '[^%d ]') then return nil end
  for each in string.gmatch(text, '%d+') do
    newest = math.max(newest, tonumber(each))
    local at = math.min(newest, now)
    if now - at <= expiry then entries[#entries + 1] = at end
  end
  -- The clock was set back. An entry from the future counts from now on, not for as long as that.
  if newest > now then save(key, entries, expiry) end
  return entries
end
local function ages(entries)
  local result = {}
  for i, at in ipairs(entries) do result[i] = now - at end
  return result
end
"""

# ARGV: amount, then limit and expiry of each key
ACQUIRE = Script(
    _BASICS,
    _ENTRIES,
    """
local amount, all, fits, reply = tonumber(ARGV[1]), {}, 1, {}
for i, key in ipairs(KEYS) do
  all[i] = live(key, tonumber(ARGV[2 * i + 1]))
  if not all[i] then return false end
  if #all[i] + amount > tonumber(ARGV[2 * i]) then fits = 0 end
end
for i, key in ipairs(KEYS) do
  if fits == 1 then
    for _ = 1, amount do table.insert(all[i], now) end
    save(key, all[i], tonumber(ARGV[2 * i + 1]))
  end
  reply[i] = ages(all[i])
end
return {fits, reply}
""",
)

# ARGV: expiry, then the ages to add
ADD = Script(
    _BASICS,
    _ENTRIES,
    """
local entries = live(KEYS[1], tonumber(ARGV[1]))
if not entries then return false end
for i = 2, #ARGV do table.insert(entries, now - tonumber(ARGV[i])) end
table.sort(entries)
save(KEYS[1], entries, tonumber(ARGV[1]))
return 1
""",
)

# ARGV: expiry
AGES = Script(
    _BASICS,
    _ENTRIES,
    """
local entries = live(KEYS[1], tonumber(ARGV[1]))
return entries and {now, ages(entries)}
""",
)

_FENCES = """
local function outlive(key, milliseconds)
  if redis.call('PTTL', key) < tonumber(milliseconds) then redis.call('PEXPIRE', key, milliseconds) end
end
"""

# ARGV: owner, known version, lease, for how many milliseconds to count fences
LEAD = Script(
    _BASICS,
    _FENCES,
    """
local version, at, till, content = unpack(redis.call('HMGET', KEYS[2], 'version', 'at', 'until', 'content'))
if version and version ~= ARGV[2] then
  version, at, till = whole(version), whole(at), whole(till)
  if not (version and at and till and content) then return false end
  if at <= now and now < till then return {0, version, now - at, content} end
end
local fences, owner
fences, owner, at, till = unpack(redis.call('HMGET', KEYS[1], 'fences', 'owner', 'at', 'until'))
if owner and owner ~= ARGV[1] then
  at, till = whole(at), whole(till)
  if not (at and till) then return false end
  if at <= now and now < till then return {1, till - now} end
end
if fences then
  fences = whole(fences)
  if not fences then return false end
else
  -- Not from 1: no fence from before a loss of all data may ever be given out again.
  fences = now
  redis.call('HSET', KEYS[1], 'version', digits(now))
end
fences = fences + 1
redis.call('HSET', KEYS[1], 'fences', digits(fences), 'owner', ARGV[1],
           'at', digits(now), 'until', digits(now + ARGV[3]))
outlive(KEYS[1], ARGV[4])
return {2, fences}
""",
)

# ARGV: fence, for how many microseconds to keep, how many after the lease was given the content was written,
# for how many milliseconds to keep, for how many to count fences, content
PUBLISH = Script(
    _BASICS,
    _FENCES,
    """
local fence = tonumber(ARGV[1])
local fences, version, at = unpack(redis.call('HMGET', KEYS[1], 'fences', 'version', 'at'))
if not fences then return 0 end
fences, version = whole(fences), whole(version)
if not (fences and version) then return false end
if fence <= version or fence ~= fences then return 0 end
at = whole(at)
if not at then return false end
redis.call('HSET', KEYS[1], 'version', ARGV[1])
redis.call('HDEL', KEYS[1], 'owner', 'at', 'until')
outlive(KEYS[1], ARGV[5])
redis.call('DEL', KEYS[2])
at = math.min(at + ARGV[3], now)
redis.call('HSET', KEYS[2], 'version', ARGV[1], 'at', digits(at), 'until', digits(now + ARGV[2]), 'content', ARGV[6])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return 1
""",
)

LOOK = Script(
    _BASICS,
    """
local record, lease = {}, {}
local version, at, till, content = unpack(redis.call('HMGET', KEYS[2], 'version', 'at', 'until', 'content'))
if version then
  version, at, till = whole(version), whole(at), whole(till)
  if not (version and at and till and content) then return false end
  if at <= now and now < till then record = {version, now - at, content} end
end
local owner
owner, at, till = unpack(redis.call('HMGET', KEYS[1], 'owner', 'at', 'until'))
if owner then
  at, till = whole(at), whole(till)
  if not (at and till) then return false end
  if at <= now and now < till then lease = {owner, till - now} end
end
return {record, lease}
""",
)

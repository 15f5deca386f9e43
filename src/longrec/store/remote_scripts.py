"""Lua scripts of the remote store. A Redis string per key contains sorted fixed-width records without duplicates.

A script runs completely or not at all, and no other command runs in between.

A record begins with its time (int64, little-endian), followed by its identity if the store has one. Together they are
the head, by which records are sorted. Lua numbers are doubles, so that a head is compared in halves of 32 bits.
"""

from __future__ import annotations

_SEARCH = """
-- The halves of a head: time, then identity (zeros where there is none).
local function head(text, at)
  local t, th = struct.unpack('<I4i4', text, at)
  if HEAD == 8 then return th, t, 0, 0 end
  local i, ih = struct.unpack('<I4i4', text, at + 8)
  return th, t, ih, i
end
local function before(a1, a2, a3, a4, b1, b2, b3, b4)
  if a1 ~= b1 then return a1 < b1 end
  if a2 ~= b2 then return a2 < b2 end
  if a3 ~= b3 then return a3 < b3 end
  return a4 < b4
end
-- Number of records of a key before a head (with ties: also those equal to it).
local function search(key, count, ties, b1, b2, b3, b4)
  local low, high = 0, count
  while low < high do
    local middle = math.floor((low + high) / 2)
    local a1, a2, a3, a4 = head(redis.call('GETRANGE', key, middle * SIZE, middle * SIZE + HEAD - 1), 1)
    local first
    if ties then first = not before(b1, b2, b3, b4, a1, a2, a3, a4)
    else first = before(a1, a2, a3, a4, b1, b2, b3, b4) end
    if first then low = middle + 1 else high = middle end
  end
  return low
end
"""

APPEND = (
    """
-- KEYS: keys. ARGV: record size, head size, maximum number of records (0: all), then the sorted records of each key.
-- A record replaces a stored one with equal time and identity. Without identity it comes after its ties.
local SIZE, HEAD, most = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
"""
    + _SEARCH
    + """
local function merge(tail, new)
  local parts, i, j = {}, 1, 1
  while i <= #tail and j <= #new do
    local a1, a2, a3, a4 = head(tail, i)
    local b1, b2, b3, b4 = head(new, j)
    if before(b1, b2, b3, b4, a1, a2, a3, a4) then
      parts[#parts + 1] = string.sub(new, j, j + SIZE - 1)
      j = j + SIZE
    else
      local same = HEAD > 8 and not before(a1, a2, a3, a4, b1, b2, b3, b4)
      if not same then parts[#parts + 1] = string.sub(tail, i, i + SIZE - 1) end
      i = i + SIZE
    end
  end
  parts[#parts + 1] = string.sub(tail, i)
  parts[#parts + 1] = string.sub(new, j)
  return table.concat(parts)
end
for k, key in ipairs(KEYS) do
  local new = ARGV[3 + k]
  local count = redis.call('STRLEN', key) / SIZE
  local at = count
  if count > 0 then at = search(key, count, HEAD == 8, head(new, 1)) end
  if at == count then redis.call('APPEND', key, new)
  else redis.call('SETRANGE', key, at * SIZE, merge(redis.call('GETRANGE', key, at * SIZE, -1), new)) end
  if most > 0 and redis.call('STRLEN', key) / SIZE > most * 1.25 then
    redis.call('SET', key, redis.call('GETRANGE', key, -most * SIZE, -1))
  end
end
"""
)

LAST = (
    """
-- KEYS: keys. ARGV: record size, head size, maximum number of records (-1: all), then a timestamp per key (8 bytes).
local SIZE, HEAD, most = tonumber(ARGV[1]), 8, tonumber(ARGV[3])
"""
    + _SEARCH
    + """
local found = {}
for k, key in ipairs(KEYS) do
  local stop = redis.call('STRLEN', key) / SIZE
  if stop > 0 then stop = search(key, stop, false, head(ARGV[3 + k], 1)) end
  local start = 0
  if most >= 0 then start = math.max(0, stop - most) end
  if start < stop then found[k] = redis.call('GETRANGE', key, start * SIZE, stop * SIZE - 1) else found[k] = '' end
end
return found
"""
)

REPLACE = """
-- Set a key to ARGV[2] if it is still ARGV[1].
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""

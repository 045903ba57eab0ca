"""The scripts of the store in Redis; `store_redis` says what lies under which key.

A script runs alone and is one transaction in the append-only file. Its first write fails where memory is full, before
anything has changed, and it looks at what its keys hold before it writes, so that all of it happens or nothing. Of an
error that nevertheless comes from within one, it is unknown whether it came before the first write.
"""

from __future__ import annotations

from service.redis_client.client import Script

# Every script looks at the types of its keys before it writes, so that it does not end between two writes.
EXPECT = """
local function unexpected(types)
  for at, wanted in ipairs(types) do
    local found = redis.call('TYPE', KEYS[at]).ok
    if found ~= 'none' and found ~= wanted then return {'unexpected', KEYS[at], found, wanted} end
  end
end
"""

APPEND = Script(
    EXPECT
    + """
local events, ids, users, active, arrivals = unpack(KEYS)
local user, keep, idle, sweep = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local wrong = unexpected({'zset', 'hash', 'zset', 'zset', 'string'})
if wrong then return wrong end
if not (redis.call('GET', arrivals) or '0'):match('^%d+$') then return {'unexpected', arrivals, 'text', 'number'} end
local first, width = 5, 4  -- timestamp, '' or '=' and the event id, item id, what is stored
local fresh, known, duplicates = {}, {}, 0
for at = first, #ARGV, width do
  local id, item = ARGV[at + 1], ARGV[at + 2]
  local before = id ~= '' and (known[id] or redis.call('HGET', ids, id:sub(2)))
  if before and before ~= item then return {'conflict', id:sub(2), before, item} end
  if before then duplicates = duplicates + 1 else fresh[#fresh + 1] = at end
  if id ~= '' then known[id] = item end
end
local mine = {}
for _, at in ipairs(fresh) do
  local member
  repeat  -- a counter that went back, with a restored backup, gives numbers that are taken
    member = string.format('%016.0f', redis.call('INCR', arrivals)) .. ARGV[at + 3]
  until redis.call('ZADD', events, 'NX', ARGV[at], member) == 1
  mine[member] = true
  if ARGV[at + 1] ~= '' then redis.call('HSET', ids, ARGV[at + 1]:sub(2), ARGV[at + 2]) end
end
local too_old = 0
local surplus = redis.call('ZCARD', events) - keep
if surplus > 0 then
  for _, member in ipairs(redis.call('ZRANGE', events, 0, surplus - 1)) do
    if mine[member] then too_old = too_old + 1 end
    local readable, content = pcall(cjson.decode, member:sub(17))
    local id = readable and type(content) == 'table' and content[2]
    if type(id) == 'string' then redis.call('HDEL', ids, id) end
  end
  redis.call('ZREMRANGEBYRANK', events, 0, surplus - 1)
end
local newest = redis.call('ZRANGE', events, -1, -1, 'WITHSCORES')[2]
if newest then
  redis.call('ZADD', users, newest:sub(1, 1) == '-' and newest:sub(2) or '-' .. newest, user)
end
if idle > 0 then
  local now = tonumber(redis.call('TIME')[1])
  redis.call('EXPIRE', events, idle)
  redis.call('EXPIRE', ids, idle)
  redis.call('ZADD', active, now, user)
  for _, gone in ipairs(redis.call('ZRANGEBYSCORE', active, '-inf', now - idle - 1, 'LIMIT', 0, sweep)) do
    redis.call('ZREM', users, gone)
    redis.call('ZREM', active, gone)
  end
else
  redis.call('PERSIST', events)
  redis.call('PERSIST', ids)
  redis.call('ZREM', active, user)
end
return {'stored', #fresh - too_old, duplicates, redis.call('ZCARD', events), too_old}
"""
)

# A user's own keys go whatever they hold: somebody wants to be forgotten.
FORGET = Script(
    EXPECT
    + """
local users, active, events, ids = unpack(KEYS)
local wrong = unexpected({'zset', 'zset'})
if wrong then return wrong end
local count = redis.call('TYPE', events).ok == 'zset' and redis.call('ZCARD', events) or 0
redis.call('DEL', events, ids)
redis.call('ZREM', users, ARGV[1])
redis.call('ZREM', active, ARGV[1])
return count
"""
)

LIST = Script("""
local query, look, prefix, most = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local score, behind = ARGV[5], ARGV[6]  -- of the user behind whom the list goes on; '' at its beginning
local function is_before(one, other)  -- byte by byte, as Redis sorts: `<` depends on the locale
  for at = 1, math.min(#one, #other) do
    if one:byte(at) ~= other:byte(at) then return one:byte(at) < other:byte(at) end
  end
  return #one < #other
end
local start = 0
if score ~= '' then
  start = redis.call('ZCOUNT', KEYS[1], '-inf', '(' .. score)
  local beyond = start + redis.call('ZCOUNT', KEYS[1], score, score)
  while start < beyond do  -- the first of those with this score that comes behind
    local middle = math.floor((start + beyond) / 2)
    local member = redis.call('ZRANGE', KEYS[1], middle, middle)[1]
    if is_before(behind, member) then beyond = middle else start = middle + 1 end
  end
end
local rows = redis.call('ZRANGE', KEYS[1], start, start + look - 1, 'WITHSCORES')
local found = {}
for at = 1, #rows, 2 do
  if query == '' or rows[at]:find(query, 1, true) then
    local count = redis.pcall('ZCARD', prefix .. rows[at])
    if type(count) == 'number' and count > 0 then  -- none: the user has expired and is not swept out yet
      found[#found + 1] = {rows[at], count, rows[at + 1]}
      if #found == most then return {rows[at], rows[at + 1], found} end
    end
  end
end
if #rows == 2 * look then return {rows[#rows - 1], rows[#rows], found} end
return {false, false, found}
""")

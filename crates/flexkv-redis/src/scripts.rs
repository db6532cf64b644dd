//! What the server does for us in one step: four short Lua scripts, run by EVAL.
//!
//! A script is one round trip and nothing happens in its middle, so no connection that breaks at
//! the wrong moment leaves a key behind that never expires. Each names its keys; none reads others.

/// Renews a lease and its log's expiry.
///
/// KEYS: lease, log, members. ARGV: record, time to live in ms, members' time to live in ms.
/// Answers `{lease kept, log kept}`. A server out of memory refuses the record but keeps the old
/// one and the log alive: its owner is not dead.
pub(crate) const RENEW: &str = "\
local kept = redis.call('EXISTS', KEYS[1])
local set = redis.pcall('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
if set.err then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
local log = redis.call('PEXPIRE', KEYS[2], ARGV[2])
if set.err then return set end
redis.call('SADD', KEYS[3], KEYS[1])
redis.call('PEXPIRE', KEYS[3], ARGV[3])
return {kept, log}";

/// Gives a lease up and deletes its log.
///
/// KEYS: lease, log, members.
pub(crate) const LEAVE: &str = "\
redis.call('UNLINK', KEYS[1], KEYS[2])
redis.call('SREM', KEYS[3], KEYS[1])
return 1";

/// Reads leases and drops from the set those that are gone.
///
/// KEYS: members, then leases. Answers `{how many leases, record or nil of each}`; the number comes
/// first because a client may take an array of strings for a published message.
pub(crate) const RECORDS: &str = "\
local records = {#KEYS - 1}
for first = 2, #KEYS, 1000 do
  local last = math.min(first + 999, #KEYS)
  local found = redis.call('MGET', unpack(KEYS, first, last))
  for i = first, last do
    records[i] = found[i - first + 1]
    if not records[i] then redis.pcall('SREM', KEYS[1], KEYS[i]) end
  end
end
return records";

/// Appends entries to a log; those that are there already are skipped.
///
/// KEYS: log. ARGV: `1` to create it if missing, time to live in ms of a created log, then sequence
/// number and bytes of each entry. Answers 1, or 0 if the log is lost: it is missing and is not to
/// be created, or entries before the first one given are missing at its end.
pub(crate) const APPEND: &str = "\
local missing = redis.call('EXISTS', KEYS[1]) == 0
if missing and ARGV[1] ~= '1' then return 0 end
if missing then
  local made = redis.pcall('XADD', KEYS[1], '0-1', 'b', '')
  if made.err then return made end
  redis.call('XDEL', KEYS[1], '0-1')
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
else
  local info = redis.call('XINFO', 'STREAM', KEYS[1])
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then
      local last = tonumber(string.match(info[i + 1], '^(%d+)'))
      if last > 0 and #ARGV >= 3 and tonumber(ARGV[3]) > last + 1 then return 0 end
    end
  end
end
for i = 3, #ARGV, 2 do
  local added = redis.pcall('XADD', KEYS[1], ARGV[i] .. '-0', 'b', ARGV[i + 1])
  if added.err and not string.find(added.err, 'equal or smaller', 1, true) then return added end
end
return 1";

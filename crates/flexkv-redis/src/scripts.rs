//! What the server does for us in one step: short Lua scripts, run by EVAL.
//!
//! A script is one round trip and nothing happens in its middle, so no connection that breaks at
//! the wrong moment leaves a key behind that never expires. Each names its keys; none reads others.
//! What an idle node does again and again is done by plain commands: those in scripts count too.

/// Takes a lease and makes it known.
///
/// KEYS: members, joins, lease. ARGV: record, time to live in ms, that of the other keys in ms, a
/// random text. Answers whether the lease was held before.
pub(crate) const JOIN: &str = "\
local before = redis.pcall('SET', KEYS[3], ARGV[1], 'PX', ARGV[2], 'GET')
if type(before) == 'table' and before.err then return before end
redis.call('SADD', KEYS[1], KEYS[3])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
if not before or redis.call('PEXPIRE', KEYS[2], ARGV[3]) == 0 then
  redis.call('SET', KEYS[2], ARGV[4], 'PX', ARGV[3])
end
return before and 1 or 0";

/// Gives a lease up.
///
/// KEYS: members, joins, lease.
pub(crate) const LEAVE: &str = "\
redis.call('UNLINK', KEYS[3])
redis.call('SREM', KEYS[1], KEYS[3])
if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('UNLINK', KEYS[2]) end
return 1";

/// Drops leases from the set that are gone.
///
/// KEYS: members, joins, then leases.
pub(crate) const PRUNE: &str = "\
for i = 3, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 0 then redis.call('SREM', KEYS[1], KEYS[i]) end
end
if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('UNLINK', KEYS[2]) end
return 1";

/// Appends entries to a log; those that are there already are skipped.
///
/// KEYS: log. ARGV: `1` to create it if missing, time to live in ms of a created log, the sequence
/// number before the first entry, then sequence number and bytes of each entry. Answers 1, or 0 if
/// the log is lost: it is missing and is not to be created, or it has entries but neither the first
/// one given nor the one before it.
pub(crate) const APPEND: &str = "\
local first = ARGV[4] or ARGV[3]
if #redis.call('XRANGE', KEYS[1], ARGV[3] .. '-0', first .. '-0', 'COUNT', 1) == 0 then
  if redis.call('EXISTS', KEYS[1]) == 0 then
    if ARGV[1] ~= '1' then return 0 end
    local made = redis.pcall('XADD', KEYS[1], '0-1', 'b', '')
    if made.err then return made end
    redis.call('XDEL', KEYS[1], '0-1')
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
  elseif ARGV[4] and redis.call('XLEN', KEYS[1]) > 0 then
    return 0
  end
end
for i = 4, #ARGV, 2 do
  local added = redis.pcall('XADD', KEYS[1], ARGV[i] .. '-0', 'b', ARGV[i + 1])
  if added.err and not string.find(added.err, 'equal or smaller', 1, true) then return added end
end
return 1";

//! What the server does for us in one step: short Lua scripts, run by EVAL.
//!
//! A script is one round trip and nothing happens in its middle, so no connection that breaks at
//! the wrong moment leaves a key behind that never expires. Each names its keys; none reads others.
//! What an idle node does again and again is done by plain commands: those in scripts count too.

/// Before scripts that change who is a member, whose KEYS are: members, changes, gone, then leases.
///
/// `changed` counts a change and answers its number; `random` begins a new life of the count if there
/// is none. `left` takes a lease out of the members, and keeps a note of that among the latest.
macro_rules! membership {
    ($script:literal) => {
        concat!(
            "\
local function changed(random, ttl)
  local life, count = string.match(redis.call('GET', KEYS[2]) or '', '^(%x+)%.(%d+)$')
  if not life then
    life, count = random, redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')[2] or 0
  end
  count = string.format('%.0f', count + 1)
  redis.call('SET', KEYS[2], life .. '.' .. count, 'PX', ttl)
  return count
end
local function left(lease, random, ttl)
  if redis.call('ZREM', KEYS[1], lease) == 0 then return end
  if redis.call('EXISTS', KEYS[1]) == 0 then
    redis.call('UNLINK', KEYS[2], KEYS[3])
    return
  end
  redis.call('ZADD', KEYS[3], changed(random, ttl), lease)
  redis.call('ZREMRANGEBYRANK', KEYS[3], 0, -257)
  redis.call('PEXPIRE', KEYS[3], ttl)
end
",
            $script
        )
    };
}

/// Takes a lease, and makes it known if it was not held with this record.
///
/// KEYS: members, changes, gone, lease. ARGV: random text, time to live of all but the lease in ms,
/// that of the lease, record. Answers whether the lease was held before.
pub(crate) const JOIN: &str = membership!(
    "\
local before = redis.pcall('SET', KEYS[4], ARGV[4], 'PX', ARGV[3], 'GET')
if type(before) == 'table' and before.err then return before end
local known = redis.call('PEXPIRE', KEYS[2], ARGV[2]) == 1 and redis.call('ZSCORE', KEYS[1], KEYS[4])
if not known or before ~= ARGV[4] then
  redis.call('ZADD', KEYS[1], changed(ARGV[1], ARGV[2]), KEYS[4])
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return before and 1 or 0"
);

/// Gives a lease up.
///
/// KEYS: members, changes, gone, lease. ARGV: random text, time to live in ms.
pub(crate) const LEAVE: &str = membership!(
    "\
redis.call('UNLINK', KEYS[4])
left(KEYS[4], ARGV[1], ARGV[2])
return 1"
);

/// Takes leases out of the members that are gone.
///
/// KEYS: members, changes, gone, then leases. ARGV: random text, time to live in ms.
pub(crate) const PRUNE: &str = membership!(
    "\
for i = 4, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 0 then left(KEYS[i], ARGV[1], ARGV[2]) end
end
return 1"
);

/// What has changed.
///
/// KEYS: members, changes, gone. ARGV: the last change that is known, or `-inf`. Answers the count of
/// changes, leases that came or changed since, and leases that went since, as far as that was kept.
pub(crate) const NEWS: &str = "\
local since = ARGV[1]
if since ~= '-inf' then since = '(' .. since end
return {
  redis.call('GET', KEYS[2]),
  redis.call('ZRANGE', KEYS[1], since, '+inf', 'BYSCORE'),
  redis.call('ZRANGE', KEYS[3], since, '+inf', 'BYSCORE'),
}";

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

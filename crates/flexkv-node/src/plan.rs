//! Which owner to ask for which blocks next, and how much of a prefix is worth waiting for.
//!
//! Blocks are asked for from front to back, a piece at a time, so that what has come is a leading part
//! at any moment. Whoever is fast comes back sooner for its next piece: that alone spreads a prefix
//! over owners by their rates. Pure arithmetic: knows no peers, no locations and no clock.

/// The most owners that one load asks.
pub(crate) const SOURCES_MAX: usize = 16;

/// A set of sources by their places, one bit each.
pub(crate) type Holders = u16;

/// What a piece should take, in seconds: longer ones gain nothing, shorter ones cost requests.
const PIECE_TIME: f64 = 0.02;
/// A shorter piece is not worth a request of its own, in seconds.
const PIECE_TIME_MIN: f64 = 0.002;
/// The most bytes of a piece.
const PIECE_BYTES_MAX: f64 = (32 << 20) as f64;
/// The most blocks of a piece.
const PIECE_BLOCKS_MAX: usize = 1024;
/// Pieces that may be under way from one source, so that it never waits for the next.
const PIECES_MAX: usize = 2;
/// A source that is slower than the fastest by this factor is asked only where nobody else can be.
const SLOW: f64 = 8.0;

/// Where an owner is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Distance {
    /// On this host.
    Host,
    /// Elsewhere, with the same locality label.
    Near,
    /// Anywhere else.
    Far,
}

impl Distance {
    /// Bytes a second that are expected of an owner nothing is known of.
    pub(crate) fn usual_rate(self) -> f64 {
        match self {
            Self::Host => 4e9,
            Self::Near | Self::Far => 1e9,
        }
    }
}

/// An owner that may be asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source {
    /// Where it is.
    pub(crate) distance: Distance,
    /// Bytes a second: as measured, else as expected.
    pub(crate) rate: f64,
    /// Whether that was measured.
    pub(crate) known: bool,
    /// The most bytes a second that may still be hoped for; infinite if nothing is known.
    pub(crate) hope: f64,
    /// Bytes that are under way from it to this node.
    pub(crate) in_flight: u64,
    /// How many of those are for this load.
    pub(crate) own: u64,
    /// Pieces that this load waits for.
    pub(crate) asked: usize,
    /// Decides between equals; differs from reader to reader.
    pub(crate) spread: u64,
}

impl Source {
    /// Whether it may be asked for another piece. Of one that nobody knows yet, a single piece shows
    /// what it can do.
    pub(crate) fn has_room(&self) -> bool {
        self.asked < if self.known { PIECES_MAX } else { 1 }
    }

    /// Whether to count on it: one that nobody knows yet, and that has not shown what it can do, may
    /// never answer.
    pub(crate) fn is_eligible(&self) -> bool {
        self.known || self.has_room()
    }

    /// Seconds until `bytes` more would be here.
    pub(crate) fn takes(&self, bytes: f64) -> f64 {
        (self.in_flight as f64 + bytes) / self.rate
    }
}

/// Blocks to ask one source for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Whom.
    pub(crate) source: usize,
    /// Which blocks, in order.
    pub(crate) blocks: Vec<usize>,
}

/// What to ask for next: `wanted` has for each block who may be asked for it now, none for one that is
/// here or under way. `None` if nothing can be asked for before something comes.
pub(crate) fn next_piece(
    sources: &[Source],
    wanted: &[Holders],
    block_bytes: usize,
) -> Option<Piece> {
    let mut full = 0;
    for (start, holders) in wanted.iter().enumerate() {
        if *holders == 0 || *holders == full {
            continue;
        }
        let best = best(sources, *holders, block_bytes);
        let Some(best) = best.filter(|best| sources[*best].has_room()) else {
            full = *holders;
            continue;
        };
        let most = most_blocks(sources, best, &wanted[start..], block_bytes);
        return Some(Piece {
            source: best,
            blocks: run(sources, best, wanted, start, most, block_bytes),
        });
    }
    None
}

/// The source to ask: on this host first, then those near by; among those the one that will be done
/// first. One that is far slower than another comes last, wherever it is.
fn best(sources: &[Source], holders: Holders, block_bytes: usize) -> Option<usize> {
    let known = members(sources, holders).filter(|(_, source)| source.known);
    let fastest = known.map(|(_, source)| source.rate).fold(0.0, f64::max);
    let rank = |source: &Source| {
        // Times are not negative, so their bits are in the order of their values.
        let time = source.takes(block_bytes as f64).to_bits();
        (
            is_slow(source, fastest),
            source.distance,
            time,
            source.spread,
        )
    };
    let eligible = members(sources, holders).filter(|(_, source)| source.is_eligible());
    let best = eligible.min_by_key(|(_, source)| rank(source));
    best.map(|(place, _)| place)
}

fn is_slow(source: &Source, fastest: f64) -> bool {
    source.rate * SLOW < fastest
}

fn members(sources: &[Source], holders: Holders) -> impl Iterator<Item = (usize, &Source)> {
    let sources = sources.iter().enumerate();
    sources.filter(move |(place, _)| holders & bit(*place) != 0)
}

/// The set of one source.
pub(crate) fn bit(place: usize) -> Holders {
    1 << place
}

/// How many blocks the piece may have: what comes in a good time, but no more than the source's share
/// of all that is wanted.
fn most_blocks(sources: &[Source], best: usize, wanted: &[Holders], block_bytes: usize) -> usize {
    let source = &sources[best];
    let open = wanted.iter().filter(|holders| **holders != 0).count();
    let rate = source.rate;
    let equals = members(sources, wanted[0]).filter(|(place, other)| {
        let comparable = !is_slow(other, rate) && !is_slow(source, other.rate);
        *place != best && other.known && other.distance == source.distance && comparable
    });
    let others: f64 = equals.map(|(_, other)| other.rate).sum();
    let share = (open * block_bytes) as f64 * rate / (rate + others);
    let (least, most) = (rate * PIECE_TIME_MIN, rate * PIECE_TIME);
    let most = if source.known { most } else { least };
    let bytes = share.clamp(least, most).min(PIECE_BYTES_MAX);
    ((bytes / block_bytes as f64) as usize).clamp(1, PIECE_BLOCKS_MAX)
}

/// Up to `most` wanted blocks from `start` on, as far as `best` is the one to ask for them.
fn run(
    sources: &[Source],
    best_source: usize,
    wanted: &[Holders],
    start: usize,
    most: usize,
    block_bytes: usize,
) -> Vec<usize> {
    let mut alike = wanted[start];
    let mut ours = |holders: Holders| {
        let ours = holders == alike || best(sources, holders, block_bytes) == Some(best_source);
        alike = if ours { holders } else { alike };
        ours
    };
    let from = wanted.iter().enumerate().skip(start);
    let open = from.filter(|(_, holders)| **holders != 0);
    open.take_while(|(_, holders)| ours(**holders))
        .map(|(block, _)| block)
        .take(most)
        .collect()
}

/// A block as far as its cost goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    /// It is here.
    Here,
    /// It comes, or could come, from these; from nobody, and all that follows is of no use.
    From(Holders),
}

/// How many leading blocks to wait for, if computing one anew takes `recompute` seconds: as many as
/// make the time of fetching those and computing the rest the shortest.
pub(crate) fn worth(
    sources: &[Source],
    blocks: &[Block],
    block_bytes: usize,
    recompute: f64,
) -> usize {
    let count = blocks.len();
    let here = blocks.iter().take_while(|block| **block == Block::Here);
    let here = here.count();
    let (mut cut, mut least) = (here, recompute * (count - here) as f64);
    let (mut time, mut met) = (0.0, 0);
    for (place, block) in blocks.iter().enumerate().skip(here) {
        if let Block::From(holders) = *block {
            if holders == 0 {
                break;
            }
            let before = members(sources, holders & !met).map(|(_, s)| s.in_flight - s.own);
            let bytes = block_bytes as u64 + before.sum::<u64>();
            let rate: f64 = members(sources, holders).map(|(_, s)| s.hope).sum();
            time += bytes as f64 / rate;
            met |= holders;
        }
        let cost = time + recompute * (count - place - 1) as f64;
        if cost <= least {
            (cut, least) = (place + 1, cost);
        }
    }
    cut
}

#[cfg(test)]
mod tests;

//! Which owner to take each block from: the preferred one's own first, else the longest runs.
//!
//! Goes over the parts of a prompt from front to back, with the set of owners that hold all of the
//! run so far. A run ends where nobody of the set goes on, or where the preferred owner's blocks
//! begin. Knows spans, not where they come from.

use super::OwnerRun;
use super::owners::{OwnerId, OwnerSet};
use super::segment::Spans;

pub(super) struct Chooser {
    usable: OwnerSet,
    prefer: Option<OwnerId>,
    seed: u64,
}

/// How far a choice has come.
#[derive(Clone, Copy)]
pub(super) struct Progress {
    /// Who holds all of the run in progress; all usable owners if it is empty.
    candidates: OwnerSet,
    /// Whether the run in progress is the preferred owner's.
    own: bool,
    run_start: usize,
    end: usize,
}

impl Progress {
    /// How many blocks are covered.
    pub(super) fn blocks(&self) -> usize {
        self.end
    }
}

impl Chooser {
    /// A choice among the usable owners. `seed` spreads callers over owners that are equally good.
    pub(super) fn new(usable: OwnerSet, prefer: Option<OwnerId>, seed: u64) -> Self {
        Self {
            usable,
            prefer: prefer.filter(|owner| usable.contains(*owner)),
            seed,
        }
    }

    pub(super) fn start(&self) -> Progress {
        Progress {
            candidates: self.usable,
            own: false,
            run_start: 0,
            end: 0,
        }
    }

    /// Adds the next `count` blocks, which `spans` tell about, and pushes the runs that end there.
    /// Returns whether all of them are held by someone.
    pub(super) fn add(
        &self,
        progress: &mut Progress,
        count: usize,
        mut spans: Spans<'_>,
        runs: &mut Vec<OwnerRun>,
    ) -> bool {
        let mut at = 0;
        while at < count {
            spans = spans.after(at);
            let own = self.prefer.and_then(|owner| spans.next_of(owner, at));
            let reached = if let Some(own) = own.filter(|own| own.start <= at) {
                self.take_own(progress, own.owner, runs);
                own.end.min(count)
            } else {
                let limit = own.map_or(count, |own| own.start.min(count));
                longest(&mut progress.candidates, spans, at, limit)
            };
            if reached == at && progress.run_start == progress.end {
                return false;
            }
            progress.end += reached - at;
            at = reached;
            if at < count {
                self.close(progress, runs);
            }
        }
        true
    }

    /// Makes the run in progress one of the preferred owner.
    fn take_own(&self, progress: &mut Progress, owner: OwnerId, runs: &mut Vec<OwnerRun>) {
        if !progress.own {
            self.close(progress, runs);
            progress.candidates = OwnerSet::only(owner);
            progress.own = true;
        }
    }

    /// Ends the run in progress.
    pub(super) fn close(&self, progress: &mut Progress, runs: &mut Vec<OwnerRun>) {
        let len = progress.end - progress.run_start;
        if let Some(owner) = progress.candidates.pick(self.seed).filter(|_| len > 0) {
            runs.push(OwnerRun {
                owner,
                start: progress.run_start,
                len,
            });
        }
        *progress = Progress {
            run_start: progress.end,
            end: progress.end,
            ..self.start()
        };
    }
}

/// How far someone of the set holds all blocks from `at` on, `limit` at most; the set shrinks to
/// those who do. Where nobody holds the block at `at`, the set stays.
fn longest(set: &mut OwnerSet, spans: Spans<'_>, at: usize, limit: usize) -> usize {
    let mut reached = at;
    let mut best = OwnerSet::default();
    for span in spans.iter().take_while(|span| span.start <= at) {
        let end = span.end.min(limit);
        if end > at && end >= reached && set.contains(span.owner) {
            if end > reached {
                best = OwnerSet::default();
                reached = end;
            }
            best.insert(span.owner);
        }
    }
    if reached > at {
        *set = best;
    }
    reached
}

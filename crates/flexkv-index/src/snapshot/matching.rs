//! What readers do: walk down the segments that a prompt's keys lead through.
//!
//! The walk is top-down: a segment that begins with `keys[p]` lies, by the chain of the keys, at
//! the right place, so no links between segments are needed. Each segment is read consistently; a
//! walk strings together states of slightly different times. Nothing here changes the index.

use std::hint::spin_loop;
use std::sync::atomic::Ordering;

use flexkv_block::{BlockKey, Location};

use super::choice::Chooser;
use super::memory::Words;
use super::owners::{OwnerId, OwnerSet};
use super::segment::{Spans, View};
use super::{MatchOptions, OwnerRun, PrefixMatch, Shared};

/// How often a reader tries to catch a segment unchanged before it goes without it.
const TRIES: usize = 100;

/// The leading `count` blocks of a segment, which are the query's next ones.
struct Part<'a> {
    count: usize,
    spans: Spans<'a>,
    words: &'a Words,
}

impl Shared {
    /// Reads the segment that begins with the first key. `read` may run several times and only its
    /// last run counts; `None` if there is no such segment or it could not be caught unchanged.
    #[inline]
    fn part<R>(&self, keys: &[BlockKey], mut read: impl FnMut(&Part<'_>) -> R) -> Option<R> {
        let first = keys.first()?.fingerprint();
        for _ in 0..TRIES {
            let shard = self.heads.shard(first, &self.words);
            let mut segments = shard.candidates(first);
            let found = segments.find_map(|id| self.read_segment(id, keys, &mut read));
            if found.is_some() || self.heads.is_current(first, shard) {
                return found;
            }
        }
        None
    }

    /// Reads a segment if it begins with the first key.
    #[inline]
    fn read_segment<R>(
        &self,
        id: u32,
        keys: &[BlockKey],
        read: &mut impl FnMut(&Part<'_>) -> R,
    ) -> Option<R> {
        let first = keys.first()?.fingerprint();
        let line = self.segments.get(id as usize)?;
        for _ in 0..TRIES {
            let Some(view) = View::read(line, &self.words) else {
                spin_loop();
                continue;
            };
            let result = view.begins_with(first).then(|| {
                read(&Part {
                    count: view.common(keys),
                    spans: view.spans(),
                    words: &self.words,
                })
            });
            if view.is_current() {
                return result;
            }
        }
        None
    }

    /// See [`super::Snapshot::match_prefix`].
    pub(super) fn match_prefix(
        &self,
        keys: &[BlockKey],
        options: &MatchOptions<'_>,
        out: &mut PrefixMatch,
    ) {
        out.runs.clear();
        let usable = self.live.load().without(options.exclude);
        let seed = keys.last().map_or(0, |key| key.fingerprint());
        let chooser = Chooser::new(usable, options.prefer, seed);
        let mut progress = chooser.start();
        let mut at = 0;
        while at < keys.len() {
            let (before, runs) = (progress, out.runs.len());
            let step = self.part(&keys[at..], |part| {
                progress = before;
                out.runs.truncate(runs);
                let whole = chooser.add(&mut progress, part.count, part.spans, &mut out.runs);
                (whole, part.count)
            });
            match step {
                Some((true, count)) => at += count,
                Some((false, _)) => break,
                None => {
                    progress = before;
                    out.runs.truncate(runs);
                    break;
                }
            }
        }
        chooser.close(&mut progress, &mut out.runs);
        out.blocks = progress.blocks();
    }

    /// See [`super::Snapshot::locate`].
    pub(super) fn locate(&self, keys: &[BlockKey], run: OwnerRun, out: &mut Vec<Option<Location>>) {
        let wanted = out.len() + run.len;
        let end = run.start.saturating_add(run.len).min(keys.len());
        let visible = self.live.load().contains(run.owner);
        let mut at = 0;
        while visible && at < end {
            let filled = out.len();
            let count = self.part(&keys[at..end], |part| {
                out.truncate(filled);
                let skip = run.start.saturating_sub(at);
                part.copy_locations(run.owner, skip, out);
                part.count
            });
            if count.is_none() {
                out.truncate(filled);
                out.extend((at >= run.start).then_some(None));
            }
            at += count.unwrap_or(1);
        }
        out.resize(wanted, None);
    }

    /// See [`super::Snapshot::replicas`].
    pub(super) fn replicas(&self, keys: &[BlockKey], exclude: &OwnerSet, out: &mut Vec<OwnerRun>) {
        let usable = self.live.load().without(exclude);
        let mut at = 0;
        while at < keys.len() {
            let filled = out.len();
            let count = self.part(&keys[at..], |part| {
                out.truncate(filled);
                let runs = part.runs().filter(|run| usable.contains(run.owner));
                out.extend(runs.map(|run| OwnerRun {
                    start: at + run.start,
                    ..run
                }));
                part.count
            });
            if count.is_none() {
                out.truncate(filled);
            }
            at += count.unwrap_or(1);
        }
    }

    /// See [`super::Snapshot::holds`].
    pub(super) fn holds(&self, keys: &[BlockKey], owner: OwnerId, out: &mut Vec<bool>) {
        out.clear();
        let visible = self.live.load().contains(owner);
        while visible && out.len() < keys.len() {
            let at = out.len();
            let count = self.part(&keys[at..], |part| {
                out.truncate(at);
                part.mark_held(owner, out);
            });
            if count.is_none() {
                out.truncate(at);
                out.push(false);
            }
        }
        out.resize(keys.len(), false);
    }
}

impl Part<'_> {
    /// Pushes the owner's locations of blocks `skip..count`.
    fn copy_locations(&self, owner: OwnerId, skip: usize, out: &mut Vec<Option<Location>>) {
        let base = out.len();
        for span in self.spans.iter().filter(|span| span.owner == owner) {
            let (start, end) = (span.start.max(skip), span.end.min(self.count));
            if start < end {
                out.resize(base + start - skip, None);
                let words = span.locations(self.words);
                let words = words.get(start - span.start..end - span.start);
                let words = words.unwrap_or_default().iter();
                out.extend(words.map(|word| Location::from_word(word.load(Ordering::Relaxed))));
            }
        }
        out.resize(base + self.count.saturating_sub(skip), None);
    }

    /// Who holds which blocks of the part.
    fn runs(&self) -> impl Iterator<Item = OwnerRun> {
        let runs = self.spans.iter().map(|span| OwnerRun {
            owner: span.owner,
            start: span.start,
            len: span.end.min(self.count).saturating_sub(span.start),
        });
        runs.filter(|run| run.len > 0)
    }

    /// Pushes for each block whether the owner holds it.
    fn mark_held(&self, owner: OwnerId, out: &mut Vec<bool>) {
        let base = out.len();
        for span in self.spans.iter().filter(|span| span.owner == owner) {
            let (start, end) = (span.start.min(self.count), span.end.min(self.count));
            out.resize(base + start, false);
            out.resize(base + end, true);
        }
        out.resize(base + self.count, false);
    }
}

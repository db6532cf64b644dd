//! The writer's half of the segments: creates, extends, cuts and frees them, and keeps the spans.
//!
//! Knows arrays and offsets, not which block follows which: that is the writer's part.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flexkv_block::Location;

use super::Shared;
use super::arena::{Arena, Array};
use super::blocks::{MAX_SEGMENT_LEN, MAX_SEGMENTS};
use super::heads::{Heads, HeadsWriter};
use super::memory::{Line, Words, copy, lines};
use super::owners::{OwnerId, OwnerSet};
use super::segment::{Segment, Span, block_words, span_words};

pub(super) struct Store {
    shared: Arc<Shared>,
    arena: Arena,
    heads: HeadsWriter,
    /// Segments that are not in use, below `made`.
    free: Vec<u32>,
    /// Segments made so far.
    made: u32,
    replicas: usize,
    /// The spans being edited; kept for its memory.
    spans: Vec<Span>,
}

fn segment(shared: &Shared, id: u32) -> Segment<'_> {
    let line = shared.segments.get(id as usize);
    let line = line.unwrap_or_else(|| unreachable!("the writer uses only segments it made"));
    Segment::new(line, &shared.words)
}

fn write(words: &[AtomicU64], locations: &[Location]) {
    for (word, location) in words.iter().zip(locations) {
        word.store(location.to_word(), Ordering::Relaxed);
    }
}

/// Adds a span that came from a segment whose first block is now at `base`.
fn append_span(spans: &mut Vec<Span>, span: &Span, base: usize, words: &Words, arena: &mut Arena) {
    let (start, end) = (span.start + base, span.end + base);
    let touches = |other: &&mut Span| other.owner == span.owner && other.end == start;
    let Some(before) = spans.iter_mut().find(touches) else {
        spans.push(Span {
            start,
            end,
            ..*span
        });
        return;
    };
    let (used, need) = (before.len(), before.len() + span.len());
    before.locations = arena.fitted(words, before.locations, used, need, MAX_SEGMENT_LEN);
    before.end = end;
    copy(span.locations(words), &before.locations(words)[used..]);
    arena.retire(span.locations);
}

impl Store {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            arena: Arena::default(),
            heads: HeadsWriter::new(),
            free: Vec::new(),
            made: 0,
            replicas: 0,
            spans: Vec::new(),
        }
    }

    /// A segment for reading.
    pub(super) fn segment(&self, id: u32) -> Segment<'_> {
        segment(&self.shared, id)
    }

    /// An empty segment for blocks behind `parent`; `None` when all numbers are in use.
    pub(super) fn create(&mut self, parent: Option<u64>) -> Option<u32> {
        let id = match self.free.pop() {
            Some(id) => id,
            None => {
                let id = self.made;
                self.made = id.checked_add(1).filter(|made| *made < MAX_SEGMENTS)?;
                self.shared.segments.grow(id as usize, lines);
                id
            }
        };
        self.segment(id).set_parent(parent);
        Some(id)
    }

    /// Appends blocks to a segment. Nobody holds them yet.
    pub(super) fn append(&mut self, id: u32, fingerprints: &[u64]) {
        let Some(first) = fingerprints.first() else {
            return;
        };
        let (shared, arena) = (&*self.shared, &mut self.arena);
        let segment = segment(shared, id);
        let base = segment.len();
        let (count, words) = (fingerprints.len(), &shared.words);
        let array = segment.appended(fingerprints.iter().copied(), count, |old, used, need| {
            arena.fitted(words, old, used, need, MAX_SEGMENT_LEN)
        });
        let head = if base == 0 { *first } else { segment.head() };
        let last = fingerprints[count - 1];
        segment.publish(|| segment.set_blocks(head, last, array, base + count));
        arena.reclaim(&self.shared.words);
        if base == 0 {
            let head_of = |id| self::segment(shared, id).head();
            let memory = (&shared.words, arena);
            self.heads
                .insert(&shared.heads, memory, *first, id, head_of);
        }
    }

    /// Cuts a segment to its first `len` blocks, beyond which nobody may hold any. Cut to nothing,
    /// it is free.
    pub(super) fn cut(&mut self, id: u32, len: usize) {
        let (shared, arena) = (&*self.shared, &mut self.arena);
        let segment = segment(shared, id);
        let (old, _) = segment.blocks();
        if len == 0 {
            let memory = (&shared.words, &mut *arena);
            self.heads.remove(&shared.heads, memory, segment.head(), id);
            self.free.push(id);
        }
        let last = segment.fingerprints().get(len.saturating_sub(1));
        let need = block_words(len);
        let array = arena.fitted(&shared.words, old, need, need, need);
        let (head, last) = (segment.head(), last.unwrap_or_default());
        segment.publish(|| segment.set_blocks(head, last, array, len));
        arena.reclaim(&self.shared.words);
    }

    /// Lets the owner hold the blocks from `start` on.
    pub(super) fn cover(&mut self, id: u32, owner: OwnerId, start: usize, locations: &[Location]) {
        let end = start + locations.len();
        let touches = |span: &Span| span.owner == owner && span.start <= end && span.end >= start;
        match self.only(id, touches) {
            Some((index, span)) if span.start <= start => {
                self.extend(id, index, span, start, locations);
            }
            _ => self.merge(id, owner, start, locations, touches),
        }
    }

    /// The span that `is` accepts and its index, if there is exactly one.
    fn only(&self, id: u32, is: impl Fn(&Span) -> bool) -> Option<(usize, Span)> {
        let spans = self.segment(id).spans().iter().enumerate();
        let mut found = spans.filter(|(_, span)| is(span));
        let first = found.next()?;
        found.next().is_none().then_some(first)
    }

    /// Extends a span, or overwrites locations in it.
    fn extend(&mut self, id: u32, index: usize, span: Span, start: usize, locations: &[Location]) {
        let (words, arena) = (&self.shared.words, &mut self.arena);
        let end = span.end.max(start + locations.len());
        let mut extended = Span { end, ..span };
        extended.locations = arena.fitted(
            words,
            span.locations,
            span.len(),
            extended.len(),
            MAX_SEGMENT_LEN,
        );
        write(&extended.locations(words)[start - span.start..], locations);
        if extended != span {
            let segment = segment(&self.shared, id);
            segment.publish(|| segment.set_span(index, &extended));
            arena.reclaim(&self.shared.words);
            self.replicas += extended.len() - span.len();
        }
    }

    /// Adds a span that takes the place of all the spans it touches.
    fn merge(
        &mut self,
        id: u32,
        owner: OwnerId,
        start: usize,
        locations: &[Location],
        touches: impl Fn(&Span) -> bool,
    ) {
        self.load(id);
        let (words, arena) = (&self.shared.words, &mut self.arena);
        let mut merged = Span {
            start,
            end: start + locations.len(),
            owner,
            locations: Array::default(),
        };
        for old in self.spans.iter().filter(|span| touches(span)) {
            merged.start = merged.start.min(old.start);
            merged.end = merged.end.max(old.end);
            self.replicas -= old.len();
        }
        self.replicas += merged.len();
        merged.locations = arena.alloc(words, merged.len());
        let target = merged.locations(words);
        for old in self.spans.extract_if(.., |span| touches(span)) {
            copy(old.locations(words), &target[old.start - merged.start..]);
            arena.retire(old.locations);
        }
        write(&target[start - merged.start..], locations);
        let place = self
            .spans
            .partition_point(|span| span.order() < merged.order());
        self.spans.insert(place, merged);
        self.save(id);
    }

    /// Lets the owner no longer hold blocks `start..end`.
    pub(super) fn uncover(&mut self, id: u32, owner: OwnerId, start: usize, end: usize) {
        let overlaps = |span: &Span| span.owner == owner && span.start < end && span.end > start;
        match self.only(id, overlaps) {
            Some((index, span)) if span.start < start && span.end <= end => {
                self.shorten(id, index, span, start);
            }
            None if !self.segment(id).spans().iter().any(|span| overlaps(&span)) => {}
            _ => self.split(id, start, end, overlaps),
        }
    }

    /// Ends a span earlier.
    fn shorten(&mut self, id: u32, index: usize, span: Span, end: usize) {
        let (words, arena) = (&self.shared.words, &mut self.arena);
        let mut shorter = Span { end, ..span };
        shorter.locations = {
            let len = shorter.len();
            arena.fitted(words, span.locations, len, len, len)
        };
        let segment = segment(&self.shared, id);
        segment.publish(|| segment.set_span(index, &shorter));
        arena.reclaim(&self.shared.words);
        self.replicas -= span.len() - shorter.len();
    }

    /// Takes `start..end` out of the spans that `overlaps` tells.
    fn split(&mut self, id: u32, start: usize, end: usize, overlaps: impl Fn(&Span) -> bool) {
        self.load(id);
        let (words, arena) = (&self.shared.words, &mut self.arena);
        for index in 0..self.spans.len() {
            let span = self.spans[index];
            if !overlaps(&span) {
                continue;
            }
            self.replicas -= span.end.min(end) - span.start.max(start);
            if span.end > end {
                let mut right = Span { start: end, ..span };
                right.locations = arena.alloc(words, right.len());
                let kept = &span.locations(words)[end - span.start..];
                copy(kept, right.locations(words));
                self.spans.push(right);
            }
            let left = &mut self.spans[index];
            left.end = start.max(left.start);
            let need = left.len();
            left.locations = arena.fitted(words, span.locations, need, need, need);
        }
        self.spans.retain(|span| span.len() > 0);
        self.spans.sort_unstable_by_key(Span::order);
        self.save(id);
    }

    /// Lets none of these owners hold anything of the segment.
    pub(super) fn drop_owners(&mut self, id: u32, owners: &OwnerSet) {
        let spans = segment(&self.shared, id).spans();
        if !spans.iter().any(|span| owners.contains(span.owner)) {
            return;
        }
        self.load(id);
        for span in self
            .spans
            .extract_if(.., |span| owners.contains(span.owner))
        {
            self.replicas -= span.len();
            self.arena.retire(span.locations);
        }
        self.save(id);
    }

    /// How many leading blocks include all that anybody holds.
    pub(super) fn held_len(&self, id: u32) -> usize {
        let spans = segment(&self.shared, id).spans();
        spans.iter().map(|span| span.end).max().unwrap_or(0)
    }

    /// Moves all of `back` to the end of `front`, where there is room. Then `back` is free.
    pub(super) fn join(&mut self, front: u32, back: u32) {
        self.load(back);
        let moved = self.spans.clone();
        self.load(front);
        let (shared, arena, spans) = (&*self.shared, &mut self.arena, &mut self.spans);
        let words = &shared.words;
        let (target, source) = (segment(shared, front), segment(shared, back));
        let (base, count) = (target.len(), source.len());
        let array = target.appended(source.fingerprints().from(0), count, |old, used, need| {
            arena.fitted(words, old, used, need, MAX_SEGMENT_LEN)
        });
        for span in &moved {
            append_span(spans, span, base, words, arena);
        }
        spans.sort_unstable_by_key(Span::order);
        let need = span_words(spans.len());
        let span_array = arena.fitted(words, target.span_array(), 0, need, need);
        target.publish(|| {
            target.set_blocks(target.head(), source.last(), array, base + count);
            target.set_spans(span_array, spans);
        });
        arena.retire(source.blocks().0);
        arena.retire(source.span_array());
        source.publish(|| {
            source.set_blocks(source.head(), source.last(), Array::default(), 0);
            source.set_spans(Array::default(), &[]);
        });
        arena.reclaim(words);
        self.heads
            .remove(&shared.heads, (words, arena), source.head(), back);
        self.free.push(back);
    }

    fn load(&mut self, id: u32) {
        self.spans.clear();
        self.spans.extend(segment(&self.shared, id).spans().iter());
    }

    fn save(&mut self, id: u32) {
        let segment = segment(&self.shared, id);
        let need = span_words(self.spans.len());
        let array = self
            .arena
            .fitted(&self.shared.words, segment.span_array(), 0, need, need);
        segment.publish(|| segment.set_spans(array, &self.spans));
        self.arena.reclaim(&self.shared.words);
    }

    /// Whether nothing should be added any more.
    pub(super) fn is_full(&self) -> bool {
        self.arena.is_full()
    }

    /// Ids of segments made so far, in use or not.
    pub(super) fn made(&self) -> u32 {
        self.made
    }

    pub(super) fn segments(&self) -> usize {
        self.made as usize - self.free.len()
    }

    pub(super) fn replicas(&self) -> usize {
        self.replicas
    }

    pub(super) fn bytes(&self) -> usize {
        self.arena.bytes() + self.made as usize * size_of::<Line>() + size_of::<Heads>()
    }

    /// Words of the arena in use.
    #[cfg(test)]
    pub(super) fn words_in_use(&self) -> usize {
        self.arena.in_use()
    }
}

//! A segment: up to 512 consecutive blocks of one chain, and who holds which of them.
//!
//! The header is one cache line of atomic words behind a sequence number (odd while the writer
//! changes it). It has the first and the last fingerprint and, if there is just one, the span; all
//! other fingerprints and spans lie in the arena. A reader takes what it finds and then asks whether
//! the number is still the same. Nothing here knows of tables, chains or liveness.
//!
//! A fingerprint names its whole prefix. So where the last blocks agree, all do, and where one
//! differs, all later ones do: comparing a segment is one comparison or a binary search.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use flexkv_block::BlockKey;

use super::arena::Array;
use super::memory::{Line, Words};
use super::owners::OwnerId;

const SEQUENCE: usize = 0;
/// Fingerprint of the first block.
const HEAD: usize = 1;
/// Fingerprint of the last block.
const LAST: usize = 2;
/// Array of the fingerprints between these two, and number of blocks.
const BLOCKS: usize = 3;
/// Spans: array and number of spans.
const SPANS: usize = 4;
/// A single span lies in the header itself.
const INLINE: usize = 5;

/// Fingerprint of the block before the first one, 0 if that is not known. Readers do not look at it.
const PARENT: usize = 7;

/// Words of a span.
const SPAN_WORDS: usize = 2;

/// Blocks `start..end` of a segment, all held by one owner, and the array of their locations.
///
/// An owner's spans neither overlap nor touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) owner: OwnerId,
    pub(super) locations: Array,
}

impl Span {
    /// The order of spans in a segment.
    pub(super) fn order(&self) -> (usize, OwnerId) {
        (self.start, self.owner)
    }

    pub(super) fn len(&self) -> usize {
        self.end - self.start
    }

    fn pack(&self) -> [u64; SPAN_WORDS] {
        let place = ((self.start as u64) << 32) | ((self.end as u64) << 16);
        [
            place | u64::from(self.owner.0),
            self.locations.pack(self.len()),
        ]
    }

    #[inline]
    fn unpack(words: [u64; SPAN_WORDS]) -> Self {
        let end = (words[0] >> 16) as usize & 0xffff;
        Self {
            // Torn words must not make the length negative.
            start: ((words[0] >> 32) as usize & 0xffff).min(end),
            end,
            owner: OwnerId(words[0] as u16),
            locations: Array::unpack(words[1]).0,
        }
    }

    /// The words of the locations of all its blocks; none if the reference is torn.
    pub(super) fn locations<'a>(&self, words: &'a Words) -> &'a [AtomicU64] {
        self.locations.slice(words, self.len())
    }
}

/// The spans of a segment, by start and then by owner.
#[derive(Clone, Copy)]
pub(super) struct Spans<'a>(&'a [AtomicU64]);

impl<'a> Spans<'a> {
    #[inline]
    pub(super) fn iter(self) -> impl Iterator<Item = Span> + use<'a> {
        self.0.chunks_exact(SPAN_WORDS).map(|words| {
            Span::unpack([
                words[0].load(Ordering::Relaxed),
                words[1].load(Ordering::Relaxed),
            ])
        })
    }

    /// The owner's first span that ends after `offset`.
    pub(super) fn next_of(self, owner: OwnerId, offset: usize) -> Option<Span> {
        self.iter()
            .find(|span| span.owner == owner && span.end > offset)
    }

    /// Without the leading spans that end at or before `offset`.
    #[inline]
    pub(super) fn after(self, offset: usize) -> Self {
        let over = self.iter().take_while(|span| span.end <= offset).count();
        Self(&self.0[over * SPAN_WORDS..])
    }

    fn set(self, index: usize, span: &Span) {
        let words = &self.0[index * SPAN_WORDS..][..SPAN_WORDS];
        for (word, value) in words.iter().zip(span.pack()) {
            word.store(value, Ordering::Relaxed);
        }
    }
}

/// Words that the array of so many blocks' fingerprints needs: the header has two of them.
pub(super) fn block_words(blocks: usize) -> usize {
    blocks.saturating_sub(2)
}

/// The fingerprints of a segment.
#[derive(Clone, Copy)]
pub(super) struct Fingerprints<'a> {
    head: u64,
    last: u64,
    between: &'a [AtomicU64],
    len: usize,
}

impl<'a> Fingerprints<'a> {
    fn new(line: &Line, words: &'a Words) -> Self {
        let (array, len) = Array::unpack(line.0[BLOCKS].load(Ordering::Relaxed));
        Self {
            head: line.0[HEAD].load(Ordering::Relaxed),
            last: line.0[LAST].load(Ordering::Relaxed),
            between: array.slice(words, block_words(len)),
            len,
        }
    }

    pub(super) fn len(self) -> usize {
        self.len
    }

    /// The fingerprint at `offset`, if the segment is that long.
    #[inline]
    pub(super) fn get(self, offset: usize) -> Option<u64> {
        if offset == 0 || offset + 1 >= self.len {
            let end = if offset == 0 { self.head } else { self.last };
            return (offset < self.len).then_some(end);
        }
        let word = self.between.get(offset - 1)?;
        Some(word.load(Ordering::Relaxed))
    }

    /// The fingerprints from `offset` on.
    #[inline]
    pub(super) fn from(self, offset: usize) -> impl Iterator<Item = u64> + use<'a> {
        let head = (offset == 0 && self.len > 0).then_some(self.head);
        let between = self.between.get(offset.saturating_sub(1)..);
        let between = between.unwrap_or_default().iter();
        let last = (offset < self.len && self.len > 1).then_some(self.last);
        let between = between.map(|word| word.load(Ordering::Relaxed));
        head.into_iter().chain(between).chain(last)
    }
}

/// A segment's header as it was at one moment, if [`Self::is_current`] says so afterwards.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    line: &'a Line,
    words: &'a Words,
    sequence: u64,
    head: u64,
    last: u64,
    array: Array,
    len: usize,
}

impl<'a> View<'a> {
    /// Reads a header; `None` while the writer is changing it.
    #[inline]
    pub(super) fn read(line: &'a Line, words: &'a Words) -> Option<Self> {
        let sequence = line.0[SEQUENCE].load(Ordering::Acquire);
        let (array, len) = Array::unpack(line.0[BLOCKS].load(Ordering::Relaxed));
        sequence.is_multiple_of(2).then(|| Self {
            line,
            words,
            sequence,
            head: line.0[HEAD].load(Ordering::Relaxed),
            last: line.0[LAST].load(Ordering::Relaxed),
            array,
            len,
        })
    }

    /// Whether all that was read since [`Self::read`] belongs together.
    #[inline]
    pub(super) fn is_current(&self) -> bool {
        fence(Ordering::Acquire);
        self.line.0[SEQUENCE].load(Ordering::Relaxed) == self.sequence
    }

    /// Whether the segment begins with this block.
    #[inline]
    pub(super) fn begins_with(&self, fingerprint: u64) -> bool {
        self.len > 0 && self.head == fingerprint
    }

    /// How many blocks of the segment are the first of `keys`, given that the first one is.
    #[inline]
    pub(super) fn common(&self, keys: &[BlockKey]) -> usize {
        let count = self.len.min(keys.len());
        let Some(last) = keys.get(..count).and_then(<[BlockKey]>::last) else {
            return 0;
        };
        if count == self.len && self.last == last.fingerprint() {
            return count;
        }
        let blocks = Fingerprints {
            head: self.head,
            last: self.last,
            between: self.array.slice(self.words, block_words(self.len)),
            len: self.len,
        };
        let same = |i: usize| blocks.get(i) == Some(keys[i].fingerprint());
        if count < self.len && same(count - 1) {
            return count;
        }
        // All before `low` are the same, `high` and all after it are not.
        let (mut low, mut high) = (1, count - 1);
        while low < high {
            let middle = low.midpoint(high);
            if same(middle) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    #[inline]
    pub(super) fn spans(&self) -> Spans<'a> {
        spans(self.line, self.words)
    }
}

#[inline]
fn spans<'a>(line: &'a Line, words: &'a Words) -> Spans<'a> {
    let (array, count) = Array::unpack(line.0[SPANS].load(Ordering::Relaxed));
    if count == 1 {
        Spans(&line.0[INLINE..INLINE + SPAN_WORDS])
    } else {
        Spans(array.slice(words, count * SPAN_WORDS))
    }
}

/// A segment in the hands of the writer, who alone changes it and so reads it without care.
///
/// Changes are made inside [`Self::publish`]; words that no reader is led to yet may be written
/// before, so that readers wait as little as possible.
#[derive(Clone, Copy)]
pub(super) struct Segment<'a> {
    line: &'a Line,
    words: &'a Words,
}

impl<'a> Segment<'a> {
    pub(super) fn new(line: &'a Line, words: &'a Words) -> Self {
        Self { line, words }
    }

    /// Runs `change` while readers are kept off.
    pub(super) fn publish(self, change: impl FnOnce()) {
        let sequence = self.line.0[SEQUENCE].load(Ordering::Relaxed);
        self.line.0[SEQUENCE].store(sequence.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        change();
        self.line.0[SEQUENCE].store(sequence.wrapping_add(2), Ordering::Release);
    }

    /// Array of the fingerprints and number of blocks.
    pub(super) fn blocks(self) -> (Array, usize) {
        Array::unpack(self.line.0[BLOCKS].load(Ordering::Relaxed))
    }

    pub(super) fn len(self) -> usize {
        self.blocks().1
    }

    pub(super) fn head(self) -> u64 {
        self.line.0[HEAD].load(Ordering::Relaxed)
    }

    /// The block before the first one, if that is known.
    pub(super) fn parent(self) -> Option<u64> {
        Some(self.line.0[PARENT].load(Ordering::Relaxed)).filter(|parent| *parent != 0)
    }

    pub(super) fn set_parent(self, parent: Option<u64>) {
        self.line.0[PARENT].store(parent.unwrap_or(0), Ordering::Relaxed);
    }

    /// Fingerprint of the last block.
    pub(super) fn last(self) -> u64 {
        self.line.0[LAST].load(Ordering::Relaxed)
    }

    pub(super) fn fingerprints(self) -> Fingerprints<'a> {
        Fingerprints::new(self.line, self.words)
    }

    /// The array for these blocks and for `count` more behind them, which it has already where no
    /// reader is led to. `make` gives an array for the second number of words that begins with the
    /// first number of those of another one.
    pub(super) fn appended(
        self,
        more: impl Iterator<Item = u64>,
        count: usize,
        make: impl FnOnce(Array, usize, usize) -> Array,
    ) -> Array {
        let (old, base) = self.blocks();
        let (used, need) = (block_words(base), block_words(base + count));
        let array = make(old, used, need);
        // What was the last block is between others now, unless it is the first one too.
        let before = (base > 1).then(|| self.last());
        let more = before.into_iter().chain(more.skip(usize::from(base == 0)));
        for (word, fingerprint) in array.slice(self.words, need)[used..].iter().zip(more) {
            word.store(fingerprint, Ordering::Relaxed);
        }
        array
    }

    pub(super) fn spans(self) -> Spans<'a> {
        spans(self.line, self.words)
    }

    /// Array of the spans; none if they fit in the header.
    pub(super) fn span_array(self) -> Array {
        Array::unpack(self.line.0[SPANS].load(Ordering::Relaxed)).0
    }

    /// Sets the fingerprints: the first and the last one, and the array of those between, which has
    /// them already. Inside `publish` only.
    pub(super) fn set_blocks(self, head: u64, last: u64, array: Array, len: usize) {
        self.line.0[HEAD].store(head, Ordering::Relaxed);
        self.line.0[LAST].store(last, Ordering::Relaxed);
        self.line.0[BLOCKS].store(array.pack(len), Ordering::Relaxed);
    }

    /// Replaces one span. Inside `publish` only.
    pub(super) fn set_span(self, index: usize, span: &Span) {
        self.spans().set(index, span);
    }

    /// Sets all spans; `array` has room for them unless it is a single one. Inside `publish` only.
    pub(super) fn set_spans(self, array: Array, spans: &[Span]) {
        self.line.0[SPANS].store(array.pack(spans.len()), Ordering::Relaxed);
        for (index, span) in spans.iter().enumerate() {
            self.set_span(index, span);
        }
    }
}

/// Words that an array needs for this many spans; a single one needs none.
pub(super) fn span_words(spans: usize) -> usize {
    if spans <= 1 { 0 } else { spans * SPAN_WORDS }
}

//! Whom to ask for what: near before far, fast before slow, in turns of their rates, and when to stop.

use super::*;

const BLOCK: usize = 1 << 20;
const ALL: Holders = 0b1111;

fn source(rate: f64) -> Source {
    Source {
        distance: Distance::Far,
        rate,
        known: true,
        hope: rate,
        in_flight: 0,
        own: 0,
        asked: 0,
        spread: 0,
    }
}

fn first(sources: &[Source], wanted: &[Holders]) -> (usize, usize) {
    let piece = next_piece(sources, wanted, BLOCK).expect("something to ask for");
    (piece.source, piece.blocks.len())
}

#[test]
fn a_piece_is_what_comes_in_a_good_time_and_a_share_of_the_rest() {
    assert_eq!(first(&[source(1e9)], &[1; 100]), (0, 19), "20 ms");
    assert_eq!(
        first(&[source(1e9)], &[1; 7]),
        (0, 7),
        "no more than there is"
    );
    assert_eq!(first(&[source(1e11)], &[1; 100]), (0, 32), "32 MiB at most");
    assert_eq!(first(&[source(1.0)], &[1; 100]), (0, 1), "a block at least");
    assert_eq!(first(&[source(1e9); 2], &[0b11; 20]), (0, 10), "half of it");
    let mut unknown = source(1e9);
    unknown.known = false;
    assert_eq!(first(&[unknown], &[1; 100]), (0, 1), "a probe");
}

#[test]
fn an_owner_on_this_host_comes_first_then_one_near_by_then_the_one_that_is_done_first() {
    let at = |distance, rate| Source {
        distance,
        ..source(rate)
    };
    let (host, near, far) = (Distance::Host, Distance::Near, Distance::Far);
    let pick = |sources: &[Source]| first(sources, &[(1 << sources.len()) - 1; 4]).0;
    assert_eq!(pick(&[at(far, 3e9), at(near, 2e9), at(host, 1e9)]), 2);
    assert_eq!(pick(&[at(far, 3e9), at(near, 2e9)]), 1);
    assert_eq!(pick(&[at(far, 3e9), at(far, 2e9)]), 0);
    let mut busy = at(far, 3e9);
    busy.in_flight = 10 << 20;
    assert_eq!(
        pick(&[busy, at(far, 2e9)]),
        1,
        "it has more to bring already"
    );
    assert_eq!(pick(&[at(far, 3e9), at(host, 1e8)]), 0, "far too slow");
    let mut other = at(far, 1e9);
    other.spread = 1;
    assert_eq!(
        (pick(&[other, at(far, 1e9)]), pick(&[at(far, 1e9), other])),
        (1, 0)
    );
}

#[test]
fn who_has_enough_under_way_is_not_asked_and_nobody_is_asked_in_its_place_from_far() {
    let mut near = source(1e9);
    (near.distance, near.asked) = (Distance::Near, 2);
    assert_eq!(next_piece(&[source(1e9), near], &[0b11; 4], BLOCK), None);
    let piece = next_piece(&[source(1e9), near], &[0b11, 0b11, 0b01, 0b01], BLOCK);
    let (source, blocks) = (0, vec![2, 3]);
    assert_eq!(
        piece,
        Some(Piece { source, blocks }),
        "what only the far one has"
    );
}

#[test]
fn a_piece_skips_what_is_here_and_ends_where_another_owner_is_better() {
    let mut near = source(1e9);
    near.distance = Distance::Near;
    let sources = [source(1e9), near];
    let piece = next_piece(&sources, &[0, 0b01, 0, 0b01, 0b11, 0b01], BLOCK);
    assert_eq!(piece.expect("a piece").blocks, [1, 3]);
    let piece = next_piece(&sources, &[0b10, 0b11, 0b10, 0b01], BLOCK);
    assert_eq!(piece.expect("a piece").blocks, [0, 1, 2]);
    assert_eq!(next_piece(&sources, &[0; 4], BLOCK), None);
    assert_eq!(next_piece(&sources, &[], BLOCK), None);
}

/// Plays a load whose owners deliver at their rates; seconds, and blocks from each.
fn play(rates: &[f64], blocks: usize) -> (f64, Vec<usize>) {
    let mut sources: Vec<Source> = rates.iter().map(|rate| source(*rate)).collect();
    let mut wanted = vec![ALL & ((1 << rates.len()) - 1); blocks];
    let (mut now, mut from) = (0.0, vec![0; rates.len()]);
    // When each piece is done, of whom, and its bytes; each source works on one after the other.
    let mut under_way: Vec<(f64, usize, u64)> = Vec::new();
    let mut free_at = vec![0.0; rates.len()];
    loop {
        while let Some(piece) = next_piece(&sources, &wanted, BLOCK) {
            let bytes = (piece.blocks.len() * BLOCK) as u64;
            piece.blocks.iter().for_each(|block| wanted[*block] = 0);
            from[piece.source] += piece.blocks.len();
            let source = &mut sources[piece.source];
            source.asked += 1;
            source.in_flight += bytes;
            let start = f64::max(free_at[piece.source], now);
            free_at[piece.source] = start + bytes as f64 / source.rate;
            under_way.push((free_at[piece.source], piece.source, bytes));
        }
        under_way.sort_by(|a, b| b.0.total_cmp(&a.0));
        let Some((at, place, bytes)) = under_way.pop() else {
            return (now, from);
        };
        now = at;
        sources[place].asked -= 1;
        sources[place].in_flight -= bytes;
    }
}

#[test]
fn owners_bring_blocks_in_proportion_to_their_rates() {
    let (time, from) = play(&[1e9, 2e9, 3e9], 1200);
    let least = (1200 * BLOCK) as f64 / 6e9;
    assert!(time < least * 1.05, "{time} s, at best {least} s");
    for (blocks, share) in from.iter().zip([200, 400, 600]) {
        assert!(blocks.abs_diff(share) < 30, "{from:?}");
    }
}

#[test]
fn a_far_slower_owner_is_left_out_if_others_have_the_blocks() {
    assert_eq!(play(&[1e9, 1e7, 1e9], 400).1[1], 0);
}

#[test]
fn what_takes_longer_than_computing_it_is_not_waited_for() {
    let sources = [source(1e9), source(1e6)];
    let per_block = |seconds_per_mib: f64| seconds_per_mib * 1.048_576;
    let fast = [Block::From(0b01); 10];
    assert_eq!(worth(&sources, &fast, BLOCK, per_block(0.002)), 10);
    assert_eq!(worth(&sources, &fast, BLOCK, per_block(0.0005)), 0);
    let slow_tail: Vec<Block> = (0..10).map(|i| Block::From(1 << (i / 5))).collect();
    assert_eq!(
        worth(&sources, &slow_tail, BLOCK, 0.01),
        5,
        "the fast part only"
    );
    let mut here_behind = slow_tail.clone();
    here_behind[6..].fill(Block::Here);
    assert_eq!(
        worth(&sources, &here_behind, BLOCK, 0.3),
        10,
        "one slow block saves five"
    );
    let mut leading = slow_tail;
    leading[..5].fill(Block::Here);
    assert_eq!(worth(&sources, &leading, BLOCK, 0.01), 5);
    let nobody = [Block::From(0b01), Block::From(0), Block::From(0b01)];
    assert_eq!(worth(&sources, &nobody, BLOCK, 1.0), 1);
}

#[test]
fn hope_and_what_is_asked_for_already_count_too() {
    let mut unknown = source(1e9);
    unknown.hope = f64::INFINITY;
    assert_eq!(worth(&[unknown], &[Block::From(1); 4], BLOCK, 1e-9), 4);
    let mut busy = source(1e9);
    busy.in_flight = 1 << 30;
    let blocks = [Block::From(1); 4];
    assert_eq!(
        worth(&[busy], &blocks, BLOCK, 0.1),
        0,
        "a second's queue before it"
    );
    busy.own = 1 << 30;
    assert_eq!(worth(&[busy], &blocks, BLOCK, 0.1), 4, "its own");
}

//! Readers beside a writer: whatever they see was true at some time.

use std::sync::atomic::AtomicBool;

use super::*;

/// Tells the writer to stop when the reader is through, or fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Changes the index at random until told to stop.
fn disturb(writer: &mut SnapshotWriter, prompts: &[Vec<u64>], stop: &AtomicBool) {
    let mut rng = fastrand::Rng::with_seed(3);
    let mut owners: Vec<OwnerId> = (0..5).map(|_| live_owner(writer)).collect();
    while !stop.load(Ordering::Relaxed) {
        let owner = owners[rng.usize(..owners.len())];
        let prompt = &prompts[rng.usize(..prompts.len())];
        let start = rng.usize(..prompt.len());
        let run = &prompt[start..prompt.len().min(start + rng.usize(1..60))];
        match rng.u32(..200) {
            0 => {
                writer.remove_owner(owner);
                owners.retain(|other| *other != owner);
                owners.push(live_owner(writer));
            }
            1..80 => writer.remove(owner, run),
            80..100 => {
                writer.sweep(40);
            }
            _ => {
                let parent = start.checked_sub(1).map(|parent| prompt[parent]);
                writer.add_run(owner, parent, run, &locations(owner, run));
            }
        }
    }
}

#[test]
fn answers_beside_a_writer_are_never_garbage() {
    let forks: Vec<(usize, usize, usize)> = (0..12).map(|i| (i / 2, 17 * i, 150)).collect();
    let prompts = prompts(Numbers::Random, &forks);
    let (mut writer, reader) = with_max_segment_len(64);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        scope.spawn(|| disturb(&mut writer, &prompts, &stop));
        let mut rng = fastrand::Rng::with_seed(4);
        let (mut found, mut places) = (PrefixMatch::default(), Vec::new());
        let (mut matched, mut located) = (0, 0);
        for _ in 0..100_000 {
            let prompt = &prompts[rng.usize(..prompts.len())];
            let query = keys(prompt);
            let prefer = rng.bool().then(|| OwnerId(rng.u16(..6)));
            let options = MatchOptions {
                prefer,
                exclude: &NOBODY,
            };
            reader.match_prefix(&query, &options, &mut found);
            matched += found.blocks;
            let mut end = 0;
            for run in &found.runs {
                assert_eq!(run.start, end);
                end += run.len;
                places.clear();
                reader.locate(&query, *run, &mut places);
                for (block, place) in prompt[run.start..end].iter().zip(&places) {
                    assert!(place.is_none_or(|place| place == location(run.owner, *block)));
                    located += usize::from(place.is_some());
                }
            }
            assert_eq!((end, end <= prompt.len()), (found.blocks, true));
        }
        assert!(matched > 0 && located > matched / 2, "{matched} {located}");
    });
}

//! What the journal tells after a close, a kill, a cut, a flipped bit and a new start of the machine.

use std::os::unix::fs::FileExt as _;
use std::sync::Mutex;
use std::sync::mpsc::channel;

use flexkv_block::{BlockKey, Checksum, Generation};

use super::*;

const EPOCH: u64 = 17;
const SLOTS: u32 = 8;

fn held(slot: u32, generation: u32) -> Held {
    Held {
        slot,
        generation: Generation::new(generation).expect("valid"),
        key: BlockKey::from_u128(u128::from(slot) << 8 | u128::from(generation)),
        parent: None,
        checksum: Checksum(3),
    }
}

fn freed(slot: u32, generation: u32) -> Record {
    Record::Freed {
        slot,
        generation: Generation::new(generation).expect("valid"),
    }
}

fn start(dir: &Path, live: &Arc<Mutex<Vec<Held>>>) -> Journal {
    let live = live.clone();
    let journal = Journal::start(JournalParts {
        dir: dir.to_owned(),
        epoch: EPOCH,
        files: Arc::new(Vec::new()),
        live: Box::new(move || live.lock().expect("no panic").clone()),
    });
    journal.expect("a journal")
}

/// Appends records and waits until they are in the file.
fn append(journal: &Journal, records: &[Record]) {
    let (told, heard) = channel();
    for record in records {
        let told = told.clone();
        journal.append(
            *record,
            Box::new(move |ok| {
                told.send(ok).ok();
            }),
        );
    }
    assert!(heard.try_recv().is_err(), "nothing is written yet");
    journal.flush();
    for _ in records {
        assert!(heard.recv().expect("every record is told of"), "written");
    }
}

/// Waits until the device has everything.
fn sync(journal: &Journal) {
    let (told, heard) = channel();
    journal.sync(Box::new(move |ok| {
        told.send(ok).ok();
    }));
    assert_eq!(heard.recv(), Ok(true), "synced");
}

/// A directory with a journal that was closed, or copied while it was open as a kill leaves it.
fn written(records: &[Record], closed: bool) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = start(dir.path(), &Arc::default());
    append(&journal, records);
    let killed = std::fs::read(path(dir.path())).expect("the journal");
    journal.close();
    if !closed {
        std::fs::write(path(dir.path()), killed).expect("put back");
    }
    dir
}

fn told(dir: &Path) -> Option<Told> {
    read(dir, EPOCH, SLOTS)
}

#[test]
fn the_last_word_on_a_slot_counts() {
    let records = [
        Record::Held(held(1, 1)),
        Record::Held(held(2, 1)),
        freed(1, 1),
        Record::Held(held(1, 2)),
        freed(1, 1),
        Record::Held(held(3, 1)),
        freed(3, 1),
        Record::Held(held(SLOTS, 1)),
    ];
    for closed in [false, true] {
        let dir = written(&records, closed);
        let told = told(dir.path()).expect("a good journal");
        assert_eq!(told.held, [held(1, 2), held(2, 1)], "closed: {closed}");
        assert!(told.trusted, "the machine was not started anew");
        assert_eq!(read(dir.path(), EPOCH + 1, SLOTS), None, "another epoch");
    }
}

#[test]
fn after_a_new_start_of_the_machine_only_a_closed_journal_is_trusted() {
    for closed in [false, true] {
        let dir = written(&[Record::Held(held(1, 1))], closed);
        let file = OpenOptions::new().write(true).open(path(dir.path()));
        let header = format::journal_header(EPOCH, [9; 16]);
        file.expect("a file")
            .write_all_at(&header, 0)
            .expect("rewritten");
        let told = told(dir.path()).expect("a good journal");
        assert_eq!(told.trusted, closed);
    }
}

#[test]
fn a_journal_cut_off_in_a_record_tells_what_came_before() {
    let dir = written(&[Record::Held(held(1, 1)), Record::Held(held(2, 1))], false);
    let bytes = std::fs::read(path(dir.path())).expect("the journal");
    for cut in RECORD_BYTES..bytes.len() {
        std::fs::write(path(dir.path()), &bytes[..cut]).expect("cut off");
        let told = told(dir.path()).expect("whole records are good");
        assert_eq!(told.held.len(), (cut - RECORD_BYTES) / RECORD_BYTES);
    }
    for cut in 0..RECORD_BYTES {
        std::fs::write(path(dir.path()), &bytes[..cut]).expect("cut off");
        assert_eq!(told(dir.path()), None, "no header");
    }
}

#[test]
fn a_damaged_journal_tells_nothing() {
    let dir = written(&[Record::Held(held(1, 1)), Record::Held(held(2, 1))], true);
    let bytes = std::fs::read(path(dir.path())).expect("the journal");
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        std::fs::write(path(dir.path()), &damaged).expect("damaged");
        assert_eq!(told(dir.path()), None, "byte {at}");
    }
}

#[test]
fn a_long_journal_is_written_anew_with_what_is_live() {
    let dir = tempfile::tempdir().expect("a directory");
    let live = Arc::new(Mutex::new(vec![held(5, 3)]));
    let journal = start(dir.path(), &live);
    let pair = [Record::Held(held(1, 1)), freed(1, 1)];
    let many: Vec<Record> = pair
        .iter()
        .cycle()
        .take(RECORDS_MIN as usize + 2)
        .copied()
        .collect();
    append(&journal, &many);
    sync(&journal);
    append(&journal, &[Record::Held(held(6, 1))]);
    let bytes = std::fs::metadata(path(dir.path()))
        .expect("the journal")
        .len();
    assert!(
        bytes < RECORDS_MIN * RECORD_BYTES as u64 / 2,
        "{bytes} bytes"
    );
    let told = told(dir.path()).expect("a good journal");
    assert_eq!(told.held, [held(5, 3), held(6, 1)]);
}

#[test]
fn a_close_writes_what_nobody_flushed() {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = start(dir.path(), &Arc::default());
    append(
        &journal,
        &[Record::Held(held(1, 1)), Record::Held(held(2, 1))],
    );
    journal.append(freed(1, 1), Box::new(|_| ()));
    journal.close();
    let told = told(dir.path()).expect("a good journal");
    assert_eq!(told.held, [held(2, 1)]);
}

#[test]
fn many_threads_lose_no_record() {
    const THREADS: u32 = 4;
    const EACH: u32 = 500;
    let dir = tempfile::tempdir().expect("a directory");
    let journal = start(dir.path(), &Arc::default());
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let journal = &journal;
            scope.spawn(move || {
                let (told, heard) = channel();
                for n in 0..EACH {
                    let told = told.clone();
                    let record = Record::Held(held(thread * EACH + n, 1));
                    let written = Box::new(move |ok| told.send(ok).unwrap_or_default());
                    journal.append(record, written);
                    journal.flush();
                    assert_eq!(heard.recv(), Ok(true), "whoever writes tells");
                }
            });
        }
    });
    journal.close();
    let told = read(dir.path(), EPOCH, THREADS * EACH).expect("a good journal");
    assert_eq!(told.held.len(), (THREADS * EACH) as usize);
}

#[test]
fn a_closed_journal_takes_nothing_more() {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = start(dir.path(), &Arc::default());
    journal.close();
    let (tell, heard) = channel();
    let too = tell.clone();
    journal.append(
        Record::Closed,
        Box::new(move |ok| {
            tell.send(ok).ok();
        }),
    );
    journal.sync(Box::new(move |ok| {
        too.send(ok).ok();
    }));
    assert_eq!((heard.recv(), heard.recv()), (Ok(false), Ok(false)));
}

//! One suite for all engines: what is written is read back, errors reach their operation alone, and
//! whoever drops an engine waits for what it has in flight.

use std::fs::OpenOptions;
use std::sync::mpsc::{Receiver, channel};

use flexkv_ports::HeapMemory;

use super::*;

const SIZE: usize = 16 << 10;
const PLACES: usize = 64;

struct Bench {
    engine: Box<dyn IoEngine>,
    memory: Arc<dyn Memory>,
    files: Arc<Vec<File>>,
    _dir: tempfile::TempDir,
}

/// All engines that this machine has, with two files each; the last one is read-only.
fn each(test: impl Fn(Bench)) {
    type Make = fn(&EngineParts) -> io::Result<Box<dyn IoEngine>>;
    let kinds: &[Make] = &[
        |parts| Ok(Box::new(Threads::new(parts)?)),
        |parts| Ok(Box::new(Uring::new(parts)?)),
        #[cfg(feature = "rio")]
        |parts| Ok(Box::new(Rio::new(parts)?)),
    ];
    for make in kinds {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("file");
        let whole = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .expect("a file");
        let read_only = File::open(&path).expect("the same file");
        let files = Arc::new(vec![whole, read_only]);
        let memory: Arc<dyn Memory> = Arc::new(HeapMemory::new(SIZE * PLACES));
        let parts = EngineParts {
            files: files.clone(),
            depth: 4,
            memory: vec![memory.clone()],
            settled: Arc::new(|| ()),
        };
        let engine = match make(&parts) {
            Ok(engine) => engine,
            Err(error) => {
                let errno = error.raw_os_error();
                let forbidden = [Some(libc::EPERM), Some(libc::ENOSYS)].contains(&errno);
                assert!(forbidden, "no engine: {error}");
                continue;
            }
        };
        test(Bench {
            engine,
            memory,
            files,
            _dir: dir,
        });
    }
}

impl Bench {
    fn bytes(&self, place: usize) -> MemorySlice {
        MemorySlice::new(self.memory.clone(), place * SIZE, SIZE).expect("inside the memory")
    }

    fn start(&self, file: usize, offset: u64, request: Request) -> Receiver<io::Result<()>> {
        let (done, result) = channel();
        let done = Box::new(move |outcome| {
            done.send(outcome).ok();
        });
        self.engine.submit(Op {
            file,
            offset,
            request,
            done,
        });
        result
    }

    fn run(&self, file: usize, offset: u64, request: Request) -> io::Result<()> {
        let result = self.start(file, offset, request);
        result.recv().expect("every operation ends")
    }
}

fn pattern(n: usize) -> Vec<u8> {
    let mut bytes = vec![0; SIZE];
    fastrand::Rng::with_seed(n as u64).fill(&mut bytes);
    bytes
}

#[test]
fn many_operations_at_once_move_the_right_bytes() {
    each(|bench| {
        let at = |n: usize| (n * SIZE) as u64;
        let mut open = Vec::new();
        for n in 0..PLACES / 2 {
            bench.bytes(n).write(0, &pattern(n));
            open.push(bench.start(0, at(n), Request::Write(bench.bytes(n))));
        }
        for result in open.drain(..) {
            result.recv().expect("it ends").expect("written");
        }
        bench.run(0, 0, Request::Sync).expect("synced");
        for n in 0..PLACES / 2 {
            let into = bench.bytes(PLACES - 1 - n);
            open.push(bench.start(1, at(n), Request::Read(into)));
        }
        for result in open {
            result.recv().expect("it ends").expect("read");
        }
        for n in 0..PLACES / 2 {
            let read = bench.bytes(PLACES - 1 - n).to_vec();
            assert!(read == pattern(n), "{}: part {n}", bench.engine.name());
        }
    });
}

#[test]
fn an_error_reaches_its_operation_alone() {
    each(|bench| {
        let name = bench.engine.name();
        bench.run(0, 0, Request::Write(bench.bytes(0))).expect(name);
        let refused = bench.run(1, 0, Request::Write(bench.bytes(1)));
        let errno = refused.expect_err("the file is read-only").raw_os_error();
        assert_eq!(errno, Some(libc::EBADF), "{name}");
        let short = bench.run(0, (SIZE / 2) as u64, Request::Read(bench.bytes(1)));
        let kind = short.expect_err("half of it is there").kind();
        assert_eq!(kind, io::ErrorKind::UnexpectedEof, "{name}");
        assert!(bench.run(2, 0, Request::Sync).is_err(), "no such file");
        bench.run(0, 0, Request::Read(bench.bytes(2))).expect(name);
    });
}

#[test]
fn memory_that_was_not_registered_works() {
    each(|bench| {
        let other: Arc<dyn Memory> = Arc::new(HeapMemory::new(SIZE));
        let other = MemorySlice::new(other, 0, SIZE).expect("inside");
        other.write(0, &pattern(7));
        bench.run(0, 0, Request::Write(other)).expect("written");
        bench
            .run(0, 0, Request::Read(bench.bytes(0)))
            .expect("read");
        assert!(bench.bytes(0).to_vec() == pattern(7));
    });
}

#[test]
fn dropping_an_engine_ends_what_is_in_flight() {
    each(|bench| {
        let open: Vec<_> = (0..PLACES)
            .map(|n| bench.start(0, (n * SIZE) as u64, Request::Write(bench.bytes(n))))
            .collect();
        drop(bench.engine);
        for result in open {
            result
                .recv()
                .expect("every operation ends")
                .expect("written");
        }
        let bytes = bench.files[0].metadata().expect("a file").len();
        assert_eq!(bytes, (PLACES * SIZE) as u64);
    });
}

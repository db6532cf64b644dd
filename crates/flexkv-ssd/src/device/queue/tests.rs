//! The queue on an engine that ends operations when told to.

use std::sync::mpsc::channel;

use flexkv_ports::{HeapMemory, MemorySlice};

use super::*;

/// Keeps operations until they are ended by hand.
#[derive(Clone, Default)]
struct Held(Arc<Mutex<VecDeque<Op>>>);

impl IoEngine for Held {
    fn name(&self) -> &'static str {
        "held"
    }

    fn submit(&self, op: Op) {
        self.0.lock().expect("no panic").push_back(op);
    }
}

impl Held {
    fn offsets(&self) -> Vec<u64> {
        self.0
            .lock()
            .expect("no panic")
            .iter()
            .map(|op| op.offset)
            .collect()
    }

    fn end_first(&self) {
        let op = self.0.lock().expect("no panic").pop_front();
        (op.expect("an operation in flight").done)(Ok(()));
    }
}

fn op(offset: u64, request: fn(MemorySlice) -> Request) -> Op {
    let memory = Arc::new(HeapMemory::new(8));
    let bytes = MemorySlice::new(memory, 0, 8).expect("all of it");
    Op {
        file: 0,
        offset,
        request: request(bytes),
        done: Box::new(|_| ()),
    }
}

#[test]
fn reads_go_before_writes_and_no_more_than_the_depth_are_in_flight() {
    let engine = Held::default();
    let queue = Arc::new(Queue::new(Box::new(engine.clone()), 2));
    for n in [1, 2, 3] {
        queue.submit(op(n, Request::Write));
    }
    for n in [11, 12] {
        queue.submit(op(n, Request::Read));
    }
    assert_eq!(engine.offsets(), [1, 2]);
    assert_eq!(queue.reads_waiting(), 2);
    engine.end_first();
    assert_eq!(engine.offsets(), [2, 11]);
    engine.end_first();
    engine.end_first();
    assert_eq!(engine.offsets(), [12, 3]);
    assert_eq!(queue.reads_waiting(), 0);
}

#[test]
fn closing_waits_for_what_was_taken_and_refuses_the_rest() {
    let engine = Held::default();
    let queue = Arc::new(Queue::new(Box::new(engine.clone()), 1));
    queue.submit(op(1, Request::Read));
    queue.submit(op(2, Request::Write));
    let closing = std::thread::spawn({
        let queue = queue.clone();
        move || queue.close()
    });
    engine.end_first();
    assert_eq!(engine.offsets(), [2], "what waits still goes");
    engine.end_first();
    closing.join().expect("no panic");
    let (tell, heard) = channel();
    let done = Box::new(move |outcome: io::Result<()>| {
        tell.send(outcome.is_err()).ok();
    });
    queue.submit(Op {
        done,
        ..op(3, Request::Read)
    });
    assert_eq!(heard.recv(), Ok(true), "refused");
    assert_eq!(engine.offsets(), [0; 0]);
}

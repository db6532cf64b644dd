//! A queue pair with a completion queue of its own.
//!
//! Whatever fails, the pair is of no use any more: whoever listens hears it, and closes the pair. A
//! new one takes its place.

use std::collections::VecDeque;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rdma_mummy_sys::ibv_req_notify_cq;
use sideway::ibverbs::AccessFlags;
use sideway::ibverbs::address::{AddressHandleAttribute, Gid};
use sideway::ibverbs::completion::{
    BasicCompletionQueue, CompletionQueue as _, GenericCompletionQueue, PollCompletionQueueError,
};
use sideway::ibverbs::device_context::Mtu;
use sideway::ibverbs::protection_domain::ProtectionDomain;
use sideway::ibverbs::queue_pair::{
    BasicQueuePair, PostSendGuard as _, QueuePair as _, QueuePairAttribute, QueuePairState,
    QueuePairType, SetScatterGatherEntry as _, WorkRequestFlags,
};

use super::events::Events;
use super::{Port, root};
use crate::nic::{Completions, Link, NicError, Pair, Path, Read, Rights};

/// How long a packet may stay unanswered: 4.096 us * 2^18, about a second.
const TIMEOUT: u8 = 18;
/// How often it is sent again before the pair fails.
const RETRIES: u8 = 7;
/// The time after which a peer that was not ready is asked again, as verbs number it: 0.64 ms.
const NOT_READY_TIMER: u8 = 12;
/// Routers that a packet may cross.
const HOPS: u8 = 64;

/// See the module.
pub(super) struct VerbsPair(Arc<Ends>);

/// The pair, as the listening thread sees it.
pub(super) struct Ends {
    name: usize,
    number: u32,
    port: Port,
    events: Arc<Events>,
    heard_by: Weak<dyn Completions>,
    open: Mutex<Option<Open>>,
}

struct Open {
    // Destroyed before its completion queue.
    pair: BasicQueuePair,
    queue: Arc<BasicCompletionQueue>,
    /// Reads whose end was not heard of. They keep the memory mapped that they go to.
    posted: VecDeque<(u64, Vec<Read>)>,
}

fn refused(step: &'static str) -> impl Fn(&dyn std::error::Error) -> NicError {
    move |error| NicError::new(step, root(error))
}

impl VerbsPair {
    pub(super) fn create(
        domain: &Arc<ProtectionDomain>,
        events: &Arc<Events>,
        port: Port,
        depth: u32,
        heard_by: Weak<dyn Completions>,
    ) -> Result<Self, NicError> {
        let name = events.name();
        // When a pair fails each of its work requests has a completion, signalled or not.
        let queue = events
            .context
            .create_cq_builder()
            .setup_cqe(depth)
            .setup_cq_context(name as *mut c_void)
            .setup_comp_channel(&events.channel, 0)
            .build()
            .map_err(|error| refused("create a completion queue")(&error))?;
        let both = GenericCompletionQueue::from(queue.clone());
        let pair = domain
            .create_qp_builder()
            .setup_qp_type(QueuePairType::ReliableConnection)
            .setup_max_send_wr(depth)
            .setup_max_recv_wr(1)
            .setup_max_send_sge(1)
            .setup_max_recv_sge(1)
            .setup_max_inline_data(0)
            .setup_send_cq(both.clone())
            .setup_recv_cq(both)
            .build()
            .map_err(|error| refused("create a queue pair")(&error))?;
        let number = pair.qp_number();
        notify(&queue)?;
        let ends = Arc::new(Ends {
            name,
            number,
            port,
            events: events.clone(),
            heard_by,
            open: Mutex::new(Some(Open {
                pair,
                queue,
                posted: VecDeque::new(),
            })),
        });
        events.add(name, Arc::downgrade(&ends));
        Ok(Self(ends))
    }
}

/// Asks for an event at the next completion.
fn notify(queue: &BasicCompletionQueue) -> Result<(), NicError> {
    // SAFETY: the queue lives during the call.
    let errno = unsafe { ibv_req_notify_cq(queue.cq().as_ptr(), 0) };
    if errno == 0 {
        return Ok(());
    }
    let error = std::io::Error::from_raw_os_error(errno);
    Err(NicError::new("ask for completion events", error))
}

impl Ends {
    fn lock(&self) -> MutexGuard<'_, Option<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes all completions there are, and passes them on.
    pub(super) fn hear(&self) {
        let (done, failure) = match &mut *self.lock() {
            Some(open) => open.completions(),
            None => return,
        };
        // The pair is not locked here: who hears may close it.
        let Some(heard_by) = self.heard_by.upgrade() else {
            return;
        };
        for id in done {
            heard_by.completed(id, Ok(()));
        }
        if let Some((id, error)) = failure {
            heard_by.completed(id, Err(error));
        }
    }

    fn close(&self) {
        self.events.remove(self.name);
        // Under the lock, so that it has gone whoever's call returns first.
        *self.lock() = None;
    }
}

impl Open {
    /// The batches that are done, and the first failure after them.
    fn completions(&mut self) -> (Vec<u64>, Option<(u64, NicError)>) {
        let mut done = Vec::new();
        // First this, so that what comes after the last look is an event again.
        if let Err(error) = notify(&self.queue) {
            return (done, Some((0, error)));
        }
        let completions = match self.queue.start_poll() {
            Ok(completions) => completions,
            Err(PollCompletionQueueError::CompletionQueueEmpty) => return (done, None),
            Err(error) => return (done, Some((0, refused("take completions")(&error)))),
        };
        let mut failure = None;
        for completion in completions {
            let (id, status) = (completion.wr_id(), completion.status());
            if status != 0 {
                let error = || NicError::new("read", status_name(status));
                failure.get_or_insert_with(|| (id, error()));
            } else if failure.is_none() {
                while self
                    .posted
                    .pop_front_if(|(posted, _)| *posted <= id)
                    .is_some()
                {}
                done.push(id);
            }
        }
        (done, failure)
    }
}

/// What a failed completion says.
fn status_name(status: u32) -> String {
    let name = match status {
        4 => "the local memory is not what the request says",
        5 => "flushed, as an earlier request failed",
        9 => "the peer takes it for an invalid request",
        10 => "the peer refuses the access: not its memory, or not the key of it",
        11 => "the peer could not do it",
        12 => "no answer from the peer, however often it was asked",
        _ => return format!("completion status {status}"),
    };
    format!("{name} (completion status {status})")
}

impl Pair for VerbsPair {
    fn number(&self) -> u32 {
        self.0.number
    }

    fn connect(&self, path: &Path) -> Result<(), NicError> {
        let step = "connect the queue pair";
        let mut open = self.0.lock();
        let open = open
            .as_mut()
            .ok_or_else(|| NicError::new(step, "it is closed"))?;
        for attributes in transitions(self.0.port, path) {
            let modified = open.pair.modify(&attributes);
            modified.map_err(|error| refused(step)(&error))?;
        }
        Ok(())
    }

    fn post(&self, id: u64, reads: Vec<Read>) -> Result<(), NicError> {
        let step = "post reads";
        let mut open = self.0.lock();
        let open = open
            .as_mut()
            .ok_or_else(|| NicError::new(step, "the queue pair is closed"))?;
        let last = reads.len().saturating_sub(1);
        let mut post = open.pair.start_post_send();
        for (number, read) in reads.iter().enumerate() {
            let mut flags = WorkRequestFlags::none();
            if read.fence {
                flags |= WorkRequestFlags::Fence;
            }
            if number == last {
                flags |= WorkRequestFlags::Signaled;
            }
            let request = post.construct_wr(id, flags);
            let request = request.setup_read(read.remote_key, read.remote);
            let (into, bytes) = (read.into.as_ptr() as u64, read.into.len() as u32);
            // SAFETY: `posted` keeps the slice, and so its memory mapped, until the completion came
            // or the pair was destroyed.
            unsafe { request.setup_sge(read.local_key, into, bytes) };
        }
        let posted = post.post();
        // Also if it failed: some of them may have been taken.
        open.posted.push_back((id, reads));
        posted.map_err(|error| refused(step)(&error))
    }

    fn close(&self) {
        self.0.close();
    }
}

impl Drop for VerbsPair {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// From a new queue pair to one that sends.
fn transitions(port: Port, path: &Path) -> [QueuePairAttribute; 3] {
    let access = match path.theirs_may {
        Rights::Nothing => AccessFlags::none(),
        Rights::Read => AccessFlags::RemoteRead,
    };
    let mut init = QueuePairAttribute::new();
    init.setup_state(QueuePairState::Init)
        .setup_pkey_index(0)
        .setup_port(port.number)
        .setup_access_flags(access);
    let theirs = &path.theirs.port;
    let mut address = AddressHandleAttribute::new();
    address.setup_port(port.number).setup_dest_lid(theirs.lid);
    if theirs.link == Link::Ethernet {
        let gid = Gid { raw: theirs.gid };
        address.setup_grh(&gid, 0, port.gid_index, HOPS, 0);
    }
    let mut receive = QueuePairAttribute::new();
    receive
        .setup_state(QueuePairState::ReadyToReceive)
        .setup_path_mtu(packets(theirs.mtu.min(path.ours.port.mtu)))
        .setup_dest_qp_num(path.theirs.number)
        .setup_rq_psn(path.theirs.first_packet)
        .setup_max_dest_read_atomic(path.reads)
        .setup_min_rnr_timer(NOT_READY_TIMER)
        .setup_address_vector(&address);
    let mut send = QueuePairAttribute::new();
    send.setup_state(QueuePairState::ReadyToSend)
        .setup_sq_psn(path.ours.first_packet)
        .setup_timeout(TIMEOUT)
        .setup_retry_cnt(RETRIES)
        .setup_rnr_retry(RETRIES)
        .setup_max_read_atomic(path.reads);
    [init, receive, send]
}

/// The packet size that verbs number so; both numbers were checked when they were told.
fn packets(size: u8) -> Mtu {
    match size {
        1 => Mtu::Mtu256,
        2 => Mtu::Mtu512,
        3 => Mtu::Mtu1024,
        4 => Mtu::Mtu2048,
        _ => Mtu::Mtu4096,
    }
}

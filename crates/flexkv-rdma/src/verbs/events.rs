//! The thread that sleeps until a completion queue of a device has news, and tells the queue pair.

use std::collections::HashMap;
use std::ffi::c_void;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rdma_mummy_sys::{ibv_ack_cq_events, ibv_cq, ibv_get_cq_event};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use sideway::ibverbs::completion::CompletionChannel;
use sideway::ibverbs::device_context::DeviceContext;

use super::pair::Ends;
use super::root;
use crate::nic::NicError;

/// A device's completion channel, and who listens.
pub(super) struct Events {
    pub(super) context: Arc<DeviceContext>,
    pub(super) channel: Arc<CompletionChannel>,
    /// Ends the thread once it can be read.
    end: OwnedFd,
    listeners: Mutex<Listeners>,
}

#[derive(Default)]
struct Listeners {
    last: usize,
    known: HashMap<usize, Weak<Ends>>,
}

impl Events {
    /// Starts the thread.
    pub(super) fn start(context: &Arc<DeviceContext>) -> Result<Arc<Self>, NicError> {
        let step = "listen for completions";
        let channel = context
            .create_comp_channel()
            .map_err(|error| NicError::new(step, root(&error)))?;
        let failed = |error: std::io::Error| NicError::new(step, error);
        channel.set_nonblocking(true).map_err(failed)?;
        let end = eventfd(0, EventfdFlags::CLOEXEC).map_err(|errno| failed(errno.into()))?;
        let events = Arc::new(Self {
            context: context.clone(),
            channel,
            end,
            listeners: Mutex::default(),
        });
        let listening = events.clone();
        std::thread::Builder::new()
            .name("flexkv-rdma".to_owned())
            .spawn(move || listening.listen())
            .map_err(failed)?;
        Ok(events)
    }

    /// Ends the thread.
    pub(super) fn stop(&self) {
        // It can only fail if the counter is full, and then it can be read already.
        let _ = rustix::io::write(&self.end, &1u64.to_ne_bytes());
    }

    /// The name under which a listener will hear.
    pub(super) fn name(&self) -> usize {
        let mut listeners = self.lock();
        listeners.last += 1;
        listeners.last
    }

    pub(super) fn add(&self, name: usize, listener: Weak<Ends>) {
        self.lock().known.insert(name, listener);
    }

    pub(super) fn remove(&self, name: usize) {
        self.lock().known.remove(&name);
    }

    fn listen(&self) {
        // SAFETY: the channel owns its descriptor, and lives as long as `self`.
        let news = unsafe { BorrowedFd::borrow_raw(self.channel.as_raw_fd()) };
        loop {
            let mut waiting = [
                PollFd::new(&news, PollFlags::IN),
                PollFd::from_borrowed_fd(std::os::fd::AsFd::as_fd(&self.end), PollFlags::IN),
            ];
            if poll(&mut waiting, None).is_err() {
                continue;
            }
            if !waiting[1].revents().is_empty() {
                return;
            }
            while let Some(name) = self.next() {
                let listener = self.lock().known.get(&name).and_then(Weak::upgrade);
                if let Some(listener) = listener {
                    listener.hear();
                }
            }
        }
    }

    /// The name of a completion queue that has news.
    fn next(&self) -> Option<usize> {
        let mut queue: *mut ibv_cq = std::ptr::null_mut();
        let mut name: *mut c_void = std::ptr::null_mut();
        // SAFETY: the channel lives as long as `self`; both results are written before 0 is returned.
        let failed = unsafe {
            ibv_get_cq_event(self.channel.comp_channel().as_ptr(), &mut queue, &mut name) != 0
        };
        if failed {
            return None;
        }
        // SAFETY: a queue with an event that is not acknowledged is not destroyed: whoever tries
        // waits for this call, after which the pointer is not used again.
        unsafe { ibv_ack_cq_events(queue, 1) };
        Some(name as usize)
    }

    fn lock(&self) -> MutexGuard<'_, Listeners> {
        self.listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

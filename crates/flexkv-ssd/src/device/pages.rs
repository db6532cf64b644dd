//! Pages for frames on their way to disk. There are as many as writes may wait.

use std::sync::{Arc, Mutex, PoisonError};

use flexkv_ports::{HeapMemory, Memory, MemorySlice};

use crate::format::PAGE;

/// A fixed number of pages.
pub(crate) struct Pages {
    memory: Arc<HeapMemory>,
    free: Mutex<Vec<usize>>,
}

/// One page; it goes back when dropped.
pub(crate) struct Page {
    pages: Arc<Pages>,
    number: usize,
}

impl Pages {
    pub(crate) fn new(count: usize) -> Self {
        Self {
            memory: Arc::new(HeapMemory::new(count * PAGE)),
            free: Mutex::new((0..count).collect()),
        }
    }

    pub(crate) fn memory(&self) -> Arc<dyn Memory> {
        self.memory.clone()
    }

    /// A page nobody uses, unless all are in use.
    pub(crate) fn take(self: &Arc<Self>) -> Option<Page> {
        let number = self
            .free
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop()?;
        let pages = self.clone();
        Some(Page { pages, number })
    }
}

impl Page {
    pub(crate) fn bytes(&self) -> MemorySlice {
        MemorySlice::new(self.pages.memory.clone(), self.number * PAGE, PAGE)
            .unwrap_or_else(|| unreachable!("page {} is one of them", self.number))
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        let mut free = self
            .pages
            .free
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        free.push(self.number);
    }
}

//! A mutex that survives a panicking holder: the values kept here are whole after every statement.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Lock<T>(Mutex<T>);

impl<T> Lock<T> {
    /// Takes the lock.
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

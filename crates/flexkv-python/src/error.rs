//! The two exceptions: the node is gone, and everything else.
//!
//! Knows nothing of what was tried.

use std::time::Duration;

use flexkv_ports::CacheError;
use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;

create_exception!(
    flexkv._native,
    FlexkvError,
    PyException,
    "A call makes no sense, or the configuration is wrong."
);
create_exception!(
    flexkv._native,
    NodeGone,
    FlexkvError,
    "The cache node is gone. Go on without a cache; attach again later."
);

/// The exception for what a cache answered.
pub(crate) fn raised(error: CacheError) -> PyErr {
    let text = error.to_string();
    match error {
        CacheError::Gone { .. } => NodeGone::new_err(text),
        CacheError::Invalid { .. } | CacheError::UnknownTicket { .. } => refused(text),
    }
}

/// The exception for a wrong argument.
pub(crate) fn refused(what: impl Into<String>) -> PyErr {
    FlexkvError::new_err(what.into())
}

/// The argument `name`, a number of seconds.
pub(crate) fn seconds(name: &str, value: f64) -> PyResult<Duration> {
    let duration = Duration::try_from_secs_f64(value);
    duration.map_err(|_| refused(format!("{name} is {value}, which is no time to wait")))
}

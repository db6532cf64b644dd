//! What must hold, each in its own file, outside of the code under test.

pub(crate) mod bytes;
pub(crate) mod convergence;
pub(crate) mod leaks;

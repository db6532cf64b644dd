//! What must hold, each in its own file, outside of the code under test. For each there is a planted
//! bug that it finds ([`crate::Plant`]).

pub(crate) mod bounds;
pub(crate) mod bytes;
pub(crate) mod convergence;
pub(crate) mod formulas;
pub(crate) mod leaks;
pub(crate) mod owners;
pub(crate) mod repeat;
pub(crate) mod serving;

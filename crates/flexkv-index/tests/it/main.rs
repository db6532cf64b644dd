//! Publishers and followers of several nodes in one thread, around a store that fails in every way
//! it is allowed to.

mod cluster;
mod faults;
mod node;
mod store;

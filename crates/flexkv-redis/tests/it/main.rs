//! The store on a real Redis server. Without `redis-server` these tests fail and say so.

mod faults;
mod local;
mod server;
mod store;

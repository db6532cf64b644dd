//! The store on a real Redis server. Without `redis-server` these tests fail and say so.

mod acl;
mod cluster;
mod faults;
mod idle;
mod local;
mod members;
mod sentinel;
mod server;
mod store;
mod tls;

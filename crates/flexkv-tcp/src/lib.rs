//! Block transport over TCP.

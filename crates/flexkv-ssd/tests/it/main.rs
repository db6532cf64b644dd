//! The SSD tier on real files.

mod conformance;
mod damage;
mod recovery;
mod support;

//! An arena is mapped only if its file can never become shorter than the mapping.

use std::sync::Arc;

use flexkv_ports::MemorySlice;
use rustix::fs::{MemfdFlags, fcntl_add_seals, ftruncate, memfd_create};

use super::*;

fn memfd(bytes: u64, seals: SealFlags) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = memfd_create("flexkv-test", flags).expect("memfd");
    ftruncate(&file, bytes).expect("truncate");
    fcntl_add_seals(&file, seals).expect("seal");
    file
}

#[track_caller]
fn refused(file: OwnedFd, bytes: u64, reason: &str) {
    let Err(error) = ArenaMapping::map(file, bytes) else {
        panic!("mapped");
    };
    assert!(error.contains(reason), "{error}");
}

#[test]
fn two_mappings_of_a_file_show_the_same_bytes() {
    let file = memfd(8192, SealFlags::SHRINK);
    let again = file.try_clone().expect("dup");
    let slices = [file, again].map(|file| {
        let mapping = ArenaMapping::map(file, 8192).expect("map");
        MemorySlice::new(Arc::new(mapping), 4000, 200).expect("inside")
    });
    assert_ne!(slices[0].as_ptr(), slices[1].as_ptr());
    slices[0].write(100, b"shared");
    assert_eq!(&slices[1].to_vec()[100..106], b"shared");
}

#[test]
fn files_that_could_end_too_early_are_refused() {
    let shrink = SealFlags::SHRINK;
    refused(memfd(8192, SealFlags::GROW), 8192, "not sealed");
    refused(memfd(8192, shrink), 8193, "8192 bytes instead of 8193");
    refused(memfd(8192, shrink), 0, "no bytes");
    refused(memfd(8192, shrink), u64::MAX, "instead of");
    let read_only = shrink | SealFlags::WRITE;
    refused(memfd(8192, read_only), 8192, "cannot map");
    let file = tempfile::tempfile().expect("a file");
    refused(file.into(), 1, "not a memory file");
}

//! What the in-memory implementations have beyond the traits: losing content, hub membership.

use super::*;

#[test]
fn heap_memory_is_zeroed_and_aligned() {
    let memory = HeapMemory::new(5000);
    assert_eq!(memory.len(), 5000);
    assert_eq!(memory.base() as usize % PAGE, 0);
    let slice = crate::MemorySlice::new(std::sync::Arc::new(memory), 0, 5000).expect("inside");
    assert_eq!(slice.to_vec(), vec![0; 5000]);
}

//! Copies in and out of shared memory, and its borders.

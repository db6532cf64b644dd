//! The traits at the seams, their in-memory implementations, decorators and conformance suites.

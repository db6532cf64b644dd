//! The cache node: match, fetch, store, evict, publish, serve.

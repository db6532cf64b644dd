//! MetadataStore on Redis or Valkey.

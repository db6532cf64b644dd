//! Engine adapter: the local protocol between engine processes and the node.

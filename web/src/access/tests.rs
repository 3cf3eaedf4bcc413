//! The gate, driven as a whole.

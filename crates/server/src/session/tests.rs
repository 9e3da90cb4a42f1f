//! Sessions over pipes in memory.

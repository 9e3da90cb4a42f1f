//! Chores of the workspace; the tidy test lives in `tests/`.

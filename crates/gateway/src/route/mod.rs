//! Routes: from method and path to the rpc that answers.

pub(crate) mod template;

pub(crate) mod trie;

pub(crate) mod path;

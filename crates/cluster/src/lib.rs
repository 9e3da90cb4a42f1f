//! Who owns what: hash slots and the shards they belong to.

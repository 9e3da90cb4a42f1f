//! The protobuf API, its conversions, and its descriptor set.

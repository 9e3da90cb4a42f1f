//! What the build script makes of `proto/etcd.proto`.
#![expect(
    clippy::allow_attributes_without_reason,
    clippy::doc_markdown,
    unreachable_pub,
    unused_qualifications,
    reason = "generated code follows its generator's rules"
)]

tonic::include_proto!("etcdserverpb");

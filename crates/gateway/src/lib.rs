//! HTTP to gRPC for any service, by descriptor: routes, transcoding, upstreams.

//! The protobuf API: messages, clients and servers, conversions, and its descriptors.
//!
//! The `.proto` files in `proto/` are the contract; they are compiled when the crate is built.
//! [`convert`] is the only way between messages and [`flux_types`], and [`status`] the only place
//! where an error becomes a gRPC status. Nothing here does I/O.

pub mod convert;
mod generated;
pub mod status;
mod text_number;

/// The interface `flux.kv.v1`.
pub use generated::flux::kv::v1 as kv;

/// The interface `flux.cdc.v1`.
pub use generated::flux::cdc::v1 as cdc;

/// The interface `flux.admin.v1`, of which neither reflection nor [`FILE_DESCRIPTOR_SET`] tells: a
/// gateway in front of a node does not expose it.
pub use generated::flux::admin::v1 as admin;

/// The interface of the first Flux-KV, package `service`.
pub use generated::service as original;

/// The error detail `flux.error.v1`.
pub use generated::flux::error::v1 as error;

/// The parts of `google.rpc` in use.
pub use generated::google::rpc;

/// All descriptors, with their imports, comments and custom options, as an encoded
/// `google.protobuf.FileDescriptorSet`: for reflection, and for gateways that are given a file.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Full name of the service in [`kv`].
pub const KV_SERVICE: &str = "flux.kv.v1.Kv";
/// Full name of the service in [`cdc`].
pub const WATCH_SERVICE: &str = "flux.cdc.v1.Watch";
/// Full name of the service in [`original`].
pub const ORIGINAL_SERVICE: &str = "service.KVService";

#[cfg(test)]
mod tests {
    use prost_reflect::{DescriptorPool, Kind, Value};

    use super::{FILE_DESCRIPTOR_SET, KV_SERVICE, ORIGINAL_SERVICE, WATCH_SERVICE};

    fn pool() -> DescriptorPool {
        DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap()
    }

    #[test]
    fn every_bytes_field_of_the_interface_is_marked_as_text() {
        let pool = pool();
        let text = pool.get_extension_by_name("flux.options.v1.text").unwrap();
        let messages = pool
            .all_messages()
            .filter(|message| message.package_name() == "flux.kv.v1");
        let mut marked = 0;
        for field in messages.flat_map(|message| message.fields().collect::<Vec<_>>()) {
            if field.kind() != Kind::Bytes {
                continue;
            }
            let options = field.options();
            let value = options.get_extension(&text);
            assert_eq!(*value, Value::Bool(true), "{}", field.full_name());
            marked += 1;
        }
        assert!(marked >= 12, "{marked}");
    }

    #[test]
    fn a_gateway_that_exposes_all_descriptors_does_not_let_anybody_govern() {
        let mut services = pool()
            .services()
            .map(|service| service.full_name().to_owned())
            .collect::<Vec<_>>();
        services.sort();
        assert_eq!(services, [WATCH_SERVICE, KV_SERVICE, ORIGINAL_SERVICE]);
    }

    #[test]
    fn every_call_of_the_interface_has_a_path_over_http() {
        let pool = pool();
        let http = pool.get_extension_by_name("google.api.http").unwrap();
        let service = pool.get_service_by_name(KV_SERVICE).unwrap();
        assert_eq!(service.methods().len(), 9);
        for method in service.methods() {
            let options = method.options();
            let Value::Message(rule) = options.get_extension(&http).into_owned() else {
                panic!("{}", method.full_name());
            };
            let paths = ["get", "post", "delete"].map(|name| {
                let path = rule.get_field_by_name(name).unwrap();
                path.as_str().unwrap_or_default().to_owned()
            });
            assert!(
                paths.iter().any(|path| path.starts_with("/v1/kv")),
                "{}: {paths:?}",
                method.full_name()
            );
        }
    }

    /// An event's JSON is a `CloudEvent` whoever writes it: no `bytes`, which JSON could not show as
    /// text, every field with presence, so that an absent one is absent and not a default, and the
    /// names of the specification, which knows no camel case.
    #[test]
    fn the_json_of_an_event_does_not_depend_on_who_writes_it() {
        let pool = pool();
        let service = pool.get_service_by_name(WATCH_SERVICE).unwrap();
        let method = service.methods().next().unwrap();
        assert!(method.is_server_streaming() && !method.is_client_streaming());
        let message = pool.get_message_by_name("flux.cdc.v1.CloudEvent").unwrap();
        let mut waiting = vec![message];
        let mut seen = 0;
        while let Some(message) = waiting.pop() {
            for field in message.fields() {
                seen += 1;
                assert!(field.supports_presence(), "{}", field.full_name());
                assert_ne!(field.kind(), Kind::Bytes, "{}", field.full_name());
                assert_eq!(field.json_name(), field.name(), "{}", field.full_name());
                if let Kind::Message(inner) = field.kind() {
                    waiting.push(inner);
                }
            }
        }
        assert!(seen > 50, "{seen}");
    }

    #[test]
    fn the_original_interface_is_exactly_what_its_clients_were_built_for() {
        let pool = pool();
        let service = pool.get_service_by_name(ORIGINAL_SERVICE).unwrap();
        let methods: Vec<String> = service
            .methods()
            .map(|method| {
                let fields = |message: prost_reflect::MessageDescriptor| {
                    let field = |field: prost_reflect::FieldDescriptor| {
                        format!("{}={}:{:?}", field.name(), field.number(), field.kind())
                    };
                    let fields: Vec<String> = message.fields().map(field).collect();
                    format!("{}({})", message.full_name(), fields.join(","))
                };
                let (input, output) = (fields(method.input()), fields(method.output()));
                format!("{} {input} {output}", method.name())
            })
            .collect();
        assert_eq!(
            methods,
            [
                "Set service.SetRequest(key=1:string,value=2:string) \
                 service.SetResponse(success=1:bool)",
                "Get service.GetRequest(key=1:string) \
                 service.GetResponse(value=1:string,found=2:bool)",
                "Del service.DelRequest(key=1:string) service.DelResponse(success=1:bool)",
            ]
        );
    }
}

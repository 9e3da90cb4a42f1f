//! Asking an upstream for its descriptors by gRPC server reflection.
//!
//! v1 is tried first and v1alpha when the upstream does not know it; their messages are the same.
//! Files come as bytes and stay bytes until the pool decodes them, since decoding them with types
//! that do not know custom options would lose those.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::uri::PathAndQuery;
use prost::Message;
use prost_reflect::DescriptorPool;
use tokio::time::Instant;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

use crate::status::{Code, Failure};
use crate::transcode::wire::{WireType, put_bytes, put_tag};
use crate::upstream::client::{Call, Client};

const V1: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
const V1_ALPHA: &str = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";
/// Time for one exchange.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(5);
/// Files that an upstream may have, and how deep their imports may go.
const FILES_MAX: usize = 10_000;
const IMPORT_DEPTH_MAX: usize = 100;

/// Services that describe or watch the server, not what it is for.
pub(crate) fn is_infrastructure(service: &str) -> bool {
    service.starts_with("grpc.reflection.")
}

/// The encoded `FileDescriptorSet` of an upstream's services, the same bytes for the same files.
///
/// # Errors
/// A sentence fragment for the log.
///
/// # Cancellation
/// Safe to drop.
pub(crate) async fn fetch(client: &Client, wanted: &[String]) -> Result<Vec<u8>, String> {
    match fetch_with(client, V1, wanted).await {
        Err(ReflectionError::Unimplemented) => match fetch_with(client, V1_ALPHA, wanted).await {
            Err(ReflectionError::Unimplemented) => {
                Err("the upstream has no reflection service".to_owned())
            }
            Err(ReflectionError::Other(problem)) => Err(problem),
            Ok(set) => Ok(set),
        },
        Err(ReflectionError::Other(problem)) => Err(problem),
        Ok(set) => Ok(set),
    }
}

enum ReflectionError {
    Unimplemented,
    Other(String),
}

impl From<Failure> for ReflectionError {
    fn from(failure: Failure) -> Self {
        if failure.code == Code::Unimplemented {
            Self::Unimplemented
        } else {
            Self::Other(failure.message)
        }
    }
}

async fn fetch_with(
    client: &Client,
    path: &'static str,
    wanted: &[String],
) -> Result<Vec<u8>, ReflectionError> {
    let listed = ask(
        client,
        path,
        vec![MessageRequest::ListServices(String::new())],
    )
    .await?;
    let mut services = BTreeSet::new();
    for answer in listed {
        if let Some(MessageResponse::ListServicesResponse(list)) = answer {
            services.extend(list.service.into_iter().map(|service| service.name));
        }
    }
    services
        .retain(|name| !is_infrastructure(name) && (wanted.is_empty() || wanted.contains(name)));
    let symbols = services
        .into_iter()
        .map(MessageRequest::FileContainingSymbol)
        .collect();
    let mut files = Files::default();
    files.add(ask(client, path, symbols).await?)?;
    for _ in 0..IMPORT_DEPTH_MAX {
        let missing = files.missing();
        if missing.is_empty() {
            return Ok(files.into_set());
        }
        let requests = missing
            .iter()
            .cloned()
            .map(MessageRequest::FileByFilename)
            .collect();
        let answers = ask(client, path, requests).await?;
        files.add(answers)?;
        files.add_well_known(&missing)?;
    }
    Err(ReflectionError::Other(
        "the imports of its files have no end".to_owned(),
    ))
}

/// Files by name, and the names that they import.
#[derive(Default)]
struct Files {
    encoded: BTreeMap<String, Vec<u8>>,
    imports: HashSet<String>,
}

impl Files {
    fn add(&mut self, answers: Vec<Option<MessageResponse>>) -> Result<(), ReflectionError> {
        for answer in answers {
            if let Some(MessageResponse::FileDescriptorResponse(response)) = answer {
                for file in response.file_descriptor_proto {
                    self.add_file(file)?;
                }
            }
        }
        Ok(())
    }

    fn add_file(&mut self, encoded: Vec<u8>) -> Result<(), ReflectionError> {
        let other = |problem: &str| ReflectionError::Other(problem.to_owned());
        let file = prost_types::FileDescriptorProto::decode(encoded.as_slice())
            .map_err(|_| other("a file descriptor cannot be decoded"))?;
        if self.encoded.len() >= FILES_MAX {
            return Err(other("it has too many files"));
        }
        self.imports.extend(file.dependency.iter().cloned());
        self.encoded.insert(file.name().to_owned(), encoded);
        Ok(())
    }

    fn missing(&self) -> Vec<String> {
        let mut missing: Vec<String> = self
            .imports
            .iter()
            .filter(|name| !self.encoded.contains_key(*name))
            .cloned()
            .collect();
        missing.sort();
        missing
    }

    /// Some servers do not serve the files of protobuf itself, which everybody has.
    fn add_well_known(&mut self, asked: &[String]) -> Result<(), ReflectionError> {
        for name in asked {
            if self.encoded.contains_key(name) {
                continue;
            }
            match DescriptorPool::global().get_file_by_name(name) {
                Some(file) => self.add_file(file.encode_to_vec())?,
                None => {
                    return Err(ReflectionError::Other(format!(
                        "it does not tell of file {name}"
                    )));
                }
            }
        }
        Ok(())
    }

    fn into_set(self) -> Vec<u8> {
        let mut set = Vec::new();
        for file in self.encoded.values() {
            put_tag(&mut set, 1, WireType::Bytes);
            put_bytes(&mut set, file);
        }
        set
    }
}

async fn ask(
    client: &Client,
    path: &'static str,
    requests: Vec<MessageRequest>,
) -> Result<Vec<Option<MessageResponse>>, ReflectionError> {
    if requests.is_empty() {
        return Ok(Vec::new());
    }
    let messages: Vec<Vec<u8>> = requests
        .into_iter()
        .map(|request| ServerReflectionRequest {
            host: String::new(),
            message_request: Some(request),
        })
        .map(|request| request.encode_to_vec())
        .collect();
    let call = Call {
        path: PathAndQuery::from_static(path),
        metadata: HeaderMap::new(),
        message: Bytes::new(),
        deadline: Instant::now() + EXCHANGE_TIMEOUT,
        span: None,
        is_impatient: false,
        is_idempotent: true,
    };
    let answers = client.batch(&call, &messages).await?;
    answers
        .into_iter()
        .map(|bytes| {
            ServerReflectionResponse::decode(bytes)
                .map(|response| response.message_response)
                .map_err(|_| ReflectionError::Other("an answer cannot be decoded".to_owned()))
        })
        .collect()
}

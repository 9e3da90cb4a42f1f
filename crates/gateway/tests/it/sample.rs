//! A gRPC service on a real socket, served by tonic from descriptors compiled here with protox.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, Bytes};
use parking_lot::Mutex;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, Value};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Request, Response, Status};

/// The encoded descriptor set of the sample, options included.
pub(crate) fn descriptor_set() -> Vec<u8> {
    let protos = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/protos");
    let mut compiler = protox::Compiler::new([protos]).unwrap();
    compiler.include_imports(true);
    compiler.open_file("lab.proto").unwrap();
    compiler.encode_file_descriptor_set()
}

/// A running sample; stops when dropped.
#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) address: SocketAddr,
    pub(crate) state: Arc<State>,
    stop: Option<oneshot::Sender<()>>,
    served: Option<tokio::task::JoinHandle<()>>,
    /// Its own, if it may be killed.
    runtime: Option<tokio::runtime::Runtime>,
}

/// What the tests look at and control.
#[derive(Debug)]
pub(crate) struct State {
    jars: Mutex<HashMap<Vec<u8>, Vec<u8>>>,
    pub(crate) calls: AtomicUsize,
    /// How long a unary call takes at least.
    pub(crate) delay_millis: AtomicU64,
    /// Whether every unary call fails.
    pub(crate) is_failing: AtomicBool,
    /// Metadata of the last call.
    pub(crate) metadata: Mutex<http::HeaderMap>,
    /// Raw request of the last call.
    pub(crate) last: Mutex<Bytes>,
    /// Lets calls of `Hang` return.
    pub(crate) release: Semaphore,
    /// Has a permit for every call of `Hang` that has come.
    pub(crate) hanging: Semaphore,
    /// Lets an event of `Tail` come.
    pub(crate) events: Semaphore,
    /// Events of `Tail` that were asked for by the transport.
    pub(crate) produced: AtomicUsize,
    /// Has a permit for every call of `Tail` that has ended.
    pub(crate) tails_ended: Semaphore,
}

impl Default for State {
    fn default() -> Self {
        Self {
            jars: Mutex::default(),
            calls: AtomicUsize::new(0),
            delay_millis: AtomicU64::new(0),
            is_failing: AtomicBool::new(false),
            metadata: Mutex::default(),
            last: Mutex::default(),
            release: Semaphore::new(0),
            hanging: Semaphore::new(0),
            events: Semaphore::new(0),
            produced: AtomicUsize::new(0),
            tails_ended: Semaphore::new(0),
        }
    }
}

impl State {
    /// Waits until so many calls of `Hang` have come.
    pub(crate) async fn wait_for_hanging(&self, calls: u32) {
        self.hanging.acquire_many(calls).await.unwrap().forget();
    }

    /// Waits until so many calls of `Tail` have ended.
    pub(crate) async fn wait_for_tails_ended(&self, calls: u32) {
        let ended = self.tails_ended.acquire_many(calls);
        tokio::time::timeout(crate::client::PATIENCE, ended)
            .await
            .expect("the calls end in time")
            .unwrap()
            .forget();
    }
}

/// Which reflection the sample has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reflection {
    V1,
    V1Alpha,
    None,
}

impl Sample {
    pub(crate) fn start(reflection: Reflection) -> Self {
        Self::start_on("127.0.0.1:0".parse().unwrap(), reflection)
    }

    pub(crate) fn start_on(address: SocketAddr, reflection: Reflection) -> Self {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(address).unwrap();
        let listener: TcpListener = socket.listen(1_024).unwrap();
        let address = listener.local_addr().unwrap();
        let set = descriptor_set();
        let state = Arc::new(State::default());
        let lab = Lab {
            pool: DescriptorPool::decode(set.as_slice()).unwrap(),
            state: Arc::clone(&state),
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let builder = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(&set)
        };
        let mut routes = tonic::service::Routes::new(lab);
        routes = match reflection {
            Reflection::V1 => routes.add_service(builder().build_v1().unwrap()),
            Reflection::V1Alpha => routes.add_service(builder().build_v1alpha().unwrap()),
            Reflection::None => routes,
        };
        let server = tonic::transport::Server::builder().add_routes(routes);
        let incoming = TcpListenerStream::new(listener);
        let served = tokio::spawn(async move {
            let stopped = async {
                drop(stopped.await);
            };
            server
                .serve_with_incoming_shutdown(incoming, stopped)
                .await
                .unwrap();
        });
        Self {
            address,
            state,
            stop: Some(stop),
            served: Some(served),
            runtime: None,
        }
    }

    /// One that can be killed.
    pub(crate) fn mortal() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let mut sample = {
            let _inside = runtime.enter();
            Self::start(Reflection::None)
        };
        sample.runtime = Some(runtime);
        sample
    }

    /// Breaks its connections with calls on them, as `kill -9` does.
    pub(crate) fn kill(mut self) -> SocketAddr {
        self.runtime.take().unwrap().shutdown_background();
        self.address
    }

    /// Stops it gracefully and waits until its port is free.
    pub(crate) async fn stop(mut self) -> SocketAddr {
        self.stop.take();
        self.served.take().unwrap().await.unwrap();
        self.address
    }
}

impl Drop for Sample {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// The service, by descriptor.
#[derive(Clone, Debug)]
struct Lab {
    pool: DescriptorPool,
    state: Arc<State>,
}

impl tonic::server::NamedService for Lab {
    const NAME: &'static str = "lab.v1.Lab";
}

type Answer = Result<Vec<u8>, Status>;

impl Lab {
    fn decode(&self, name: &str, bytes: &[u8]) -> DynamicMessage {
        let descriptor = self.pool.get_message_by_name(name).unwrap();
        DynamicMessage::decode(descriptor, bytes).unwrap()
    }

    fn message(&self, name: &str, fields: &[(&str, Value)]) -> Vec<u8> {
        let descriptor = self.pool.get_message_by_name(name).unwrap();
        let mut message = DynamicMessage::new(descriptor);
        for (field, value) in fields {
            message.set_field_by_name(field, value.clone());
        }
        message.encode_to_vec()
    }

    async fn call(self, method: String, request: Request<Bytes>) -> Answer {
        self.state.calls.fetch_add(1, Ordering::Relaxed);
        *self.state.metadata.lock() = request.metadata().clone().into_headers();
        let bytes = request.into_inner();
        *self.state.last.lock() = bytes.clone();
        let delay = self.state.delay_millis.load(Ordering::Relaxed);
        if delay > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(delay)).await;
        }
        if self.state.is_failing.load(Ordering::Relaxed) {
            return Err(Status::internal("told to fail"));
        }
        match method.as_str() {
            "Echo" | "Raw" => Ok(bytes.to_vec()),
            "Fill" => self.fill(&bytes),
            "Look" => Ok(self.look(&bytes)),
            "Slow" => {
                let seen = self.look(&bytes);
                // The answer of what was seen on arrival takes its time on the way.
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                Ok(seen)
            }
            "Empty" => Ok(self.message("lab.v1.EmptyResponse", &[("success", Value::Bool(true))])),
            "Fail" => Err(self.fail(&bytes)),
            "Hang" => {
                self.state.hanging.add_permits(1);
                self.state.release.acquire().await.unwrap().forget();
                Ok(self.look(&bytes))
            }
            _ => Err(Status::unimplemented("no such method")),
        }
    }

    fn fill(&self, bytes: &[u8]) -> Answer {
        let request = self.decode("lab.v1.FillRequest", bytes);
        let jar = bytes_of(&request, "jar");
        let mut fields = vec![
            ("success", Value::Bool(true)),
            ("note", Value::String("kept".to_owned())),
        ];
        if request
            .get_field_by_name("return_revision")
            .unwrap()
            .as_bool()
            .unwrap()
        {
            fields.push(("revision", Value::U64(9_007_199_254_740_993)));
        }
        self.state
            .jars
            .lock()
            .insert(jar, bytes_of(&request, "content"));
        Ok(self.message("lab.v1.FillResponse", &fields))
    }

    fn look(&self, bytes: &[u8]) -> Vec<u8> {
        let request = self.decode("lab.v1.LookRequest", bytes);
        let jars = self.state.jars.lock();
        let Some(content) = jars.get(&bytes_of(&request, "jar")) else {
            return Vec::new();
        };
        let content = Value::Bytes(content.clone().into());
        self.message(
            "lab.v1.LookResponse",
            &[("content", content), ("found", Value::Bool(true))],
        )
    }

    fn fail(&self, bytes: &[u8]) -> Status {
        let request = self.decode("lab.v1.FailRequest", bytes);
        let code = request.get_field_by_name("code").unwrap().as_i32().unwrap();
        let message = request
            .get_field_by_name("message")
            .unwrap()
            .as_str()
            .unwrap()
            .to_owned();
        let mut details = Vec::new();
        for kind in request
            .get_field_by_name("details")
            .unwrap()
            .as_list()
            .unwrap()
        {
            let (name, value) = match kind.as_str().unwrap() {
                "reason" => (
                    "lab.v1.Reason",
                    self.message(
                        "lab.v1.Reason",
                        &[
                            ("outcome", Value::String("unknown".to_owned())),
                            ("hint", Value::I64(i64::MAX)),
                        ],
                    ),
                ),
                // field_violations { field: "size" description: "too big" }
                "bad-request" => (
                    "google.rpc.BadRequest",
                    b"\x0a\x0f\x0a\x04size\x12\x07too big".to_vec(),
                ),
                "debug" => ("google.rpc.DebugInfo", b"\x12\x06secret".to_vec()),
                other => panic!("no detail {other}"),
            };
            details.push(prost_types::Any {
                type_url: format!("type.googleapis.com/{name}"),
                value,
            });
        }
        let status = RpcStatus {
            code,
            message: message.clone(),
            details,
        };
        Status::with_details(Code::from(code), message, status.encode_to_vec().into())
    }
}

#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}

fn bytes_of(message: &DynamicMessage, field: &str) -> Vec<u8> {
    message
        .get_field_by_name(field)
        .unwrap()
        .as_bytes()
        .unwrap()
        .to_vec()
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl tower_service::Service<http::Request<tonic::body::Body>> for Lab {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let lab = self.clone();
        let method = request
            .uri()
            .path()
            .rsplit('/')
            .next()
            .unwrap_or_default()
            .to_owned();
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(RawCodec);
            Ok(if matches!(method.as_str(), "Count" | "Tail" | "Pour") {
                grpc.server_streaming(Streaming { lab, method }, request)
                    .await
            } else {
                grpc.unary(Unary { lab, method }, request).await
            })
        })
    }
}

struct Unary {
    lab: Lab,
    method: String,
}

impl tonic::server::UnaryService<Bytes> for Unary {
    type Response = Vec<u8>;
    type Future = BoxFuture<Result<Response<Vec<u8>>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let (lab, method) = (self.lab.clone(), self.method.clone());
        Box::pin(async move {
            let mut response = Response::new(lab.call(method, request).await?);
            response
                .metadata_mut()
                .insert("x-lab", "yes".parse().unwrap());
            Ok(response)
        })
    }
}

struct Streaming {
    lab: Lab,
    method: String,
}

impl tonic::server::ServerStreamingService<Bytes> for Streaming {
    type Response = Vec<u8>;
    type ResponseStream = BoxStream;
    type Future = BoxFuture<Result<Response<BoxStream>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let lab = self.lab.clone();
        let method = self.method.clone();
        Box::pin(async move {
            lab.state.calls.fetch_add(1, Ordering::Relaxed);
            *lab.state.metadata.lock() = request.metadata().clone().into_headers();
            let stream = match method.as_str() {
                "Count" => lab.count(request.get_ref()),
                "Pour" => lab.pour(request.get_ref()),
                _ => lab.tail(request.get_ref())?,
            };
            let mut response = Response::new(stream);
            response
                .metadata_mut()
                .insert("x-lab", "yes".parse().unwrap());
            Ok(response)
        })
    }
}

/// Tells that a tail has ended, however it has.
#[derive(Debug)]
struct Tail(Arc<State>);

impl Drop for Tail {
    fn drop(&mut self) {
        self.0.tails_ended.add_permits(1);
    }
}

impl Lab {
    fn count(&self, request: &[u8]) -> BoxStream {
        let everything = |small| self.message("lab.v1.Everything", &[("small", Value::I32(small))]);
        self.numbers(request, everything)
    }

    /// Bodies that hold their number.
    fn pour(&self, request: &[u8]) -> BoxStream {
        let body = |number: i32| {
            let fields = [
                ("content_type", Value::String("text/csv".to_owned())),
                ("data", Value::Bytes(format!("{number}\n").into())),
            ];
            self.message("google.api.HttpBody", &fields)
        };
        self.numbers(request, body)
    }

    fn numbers(&self, request: &[u8], message: impl Fn(i32) -> Vec<u8>) -> BoxStream {
        let request = self.decode("lab.v1.CountRequest", request);
        let number = |name: &str| request.get_field_by_name(name).unwrap().as_i32().unwrap();
        let (from, count, fail_after) = (number("from"), number("count"), number("fail_after"));
        let mut items: Vec<Answer> = (from..from + count).map(|n| Ok(message(n))).collect();
        if let (Ok(at), true) = (usize::try_from(fail_after), fail_after > 0) {
            items.truncate(at);
            items.push(Err(Status::data_loss("lost count")));
        }
        Box::pin(tokio_stream::iter(items))
    }

    /// Events after the cursor, for ever.
    fn tail(&self, request: &[u8]) -> Result<BoxStream, Status> {
        let request = self.decode("lab.v1.TailRequest", request);
        let cursor = request.get_field_by_name("cursor").unwrap();
        let first: i64 = match cursor.as_str().unwrap() {
            "" => 0,
            text => text
                .parse()
                .map_err(|_| Status::invalid_argument("no such cursor"))?,
        };
        let size = request.get_field_by_name("size").unwrap().as_i32().unwrap();
        let size = usize::try_from(size).unwrap();
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let lab = self.clone();
        let tail = Tail(Arc::clone(&self.state));
        tokio::spawn(async move {
            lab.state.hanging.add_permits(1);
            for number in first + 1.. {
                if size == 0 {
                    let allowed = tokio::select! {
                        permit = lab.state.events.acquire() => permit,
                        () = sender.closed() => break,
                    };
                    allowed.unwrap().forget();
                }
                if sender.send(Ok(lab.event(number, size))).await.is_err() {
                    break;
                }
                lab.state.produced.fetch_add(1, Ordering::Relaxed);
            }
            drop(tail);
        });
        Ok(Box::pin(tokio_stream::wrappers::ReceiverStream::new(
            receiver,
        )))
    }

    fn event(&self, number: i64, size: usize) -> Vec<u8> {
        let descriptor = self.pool.get_message_by_name("lab.v1.Event").unwrap();
        let mut event = DynamicMessage::new(descriptor);
        event.set_field_by_name("number", Value::I64(number));
        event.set_field_by_name("text", Value::String("x".repeat(size)));
        self.message(
            "lab.v1.TailResponse",
            &[
                ("cursor", Value::String(number.to_string())),
                ("event", Value::Message(event)),
                ("kind", Value::String("tick".to_owned())),
            ],
        )
    }
}

type BoxStream = Pin<Box<dyn tokio_stream::Stream<Item = Answer> + Send>>;

#[derive(Clone, Copy, Debug)]
struct RawCodec;

impl Codec for RawCodec {
    type Encode = Vec<u8>;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for RawCodec {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

//! The service behind the gateways of `scripts/bench-gateway`: answers every call at once, one
//! thread, without looking at messages. `bench_backend HOST:PORT`
//!
//! `Get` answers with a value, `Set` with success, everything else with what it was sent.

use std::convert::Infallible;
use std::error::Error;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, Bytes};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Request, Response, Status};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1).ok_or("bench_backend HOST:PORT")?;
    tonic::transport::Server::builder()
        .add_service(Bench)
        .serve(address.parse()?)
        .await?;
    Ok(())
}

#[derive(Clone, Copy, Debug)]
struct Bench;

impl tonic::server::NamedService for Bench {
    const NAME: &'static str = "bench.v1.Bench";
}

type Answer = http::Response<tonic::body::Body>;

impl tower_service::Service<http::Request<tonic::body::Body>> for Bench {
    type Response = Answer;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let method = Method(match request.uri().path() {
            // GetResponse { value: "0123456789abcdef", found: true }
            "/bench.v1.Bench/Get" => Some(&b"\x0a\x100123456789abcdef\x10\x01"[..]),
            // SetResponse { success: true }
            "/bench.v1.Bench/Set" => Some(&b"\x08\x01"[..]),
            _ => None,
        });
        Box::pin(async move { Ok(tonic::server::Grpc::new(Raw).unary(method, request).await) })
    }
}

/// What a method answers; without it, its request.
struct Method(Option<&'static [u8]>);

impl tonic::server::UnaryService<Bytes> for Method {
    type Response = Bytes;
    type Future = Ready<Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let answer = self
            .0
            .map_or_else(|| request.into_inner(), Bytes::from_static);
        ready(Ok(Response::new(answer)))
    }
}

#[derive(Clone, Copy, Debug)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
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

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

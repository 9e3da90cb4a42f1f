//! `service.KVService`: the interface of the first Flux-KV.

use flux_proto::original::kv_service_server::KvService;
use flux_proto::original::{
    DelRequest, DelResponse, GetRequest, GetResponse, SetRequest, SetResponse,
};
use tonic::{Request, Response, Status};

use super::KvApi;
use crate::execute::Execute;

#[tonic::async_trait]
impl<E: Execute> KvService for KvApi<E> {
    async fn set(&self, request: Request<SetRequest>) -> Result<Response<SetResponse>, Status> {
        self.call(request).await
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        self.call(request).await
    }

    async fn del(&self, request: Request<DelRequest>) -> Result<Response<DelResponse>, Status> {
        self.call(request).await
    }
}

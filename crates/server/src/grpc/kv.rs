//! `flux.kv.v1.Kv`.

use flux_proto::convert::{InvalidField, OPERATIONS_MAX, is_stale};
use flux_proto::kv::kv_server::Kv;
use flux_proto::kv::{
    BatchRequest, BatchResponse, CompareAndSetRequest, CompareAndSetResponse, DeleteRequest,
    DeleteResponse, ExpireRequest, ExpireResponse, GetRequest, GetResponse, IncrementRequest,
    IncrementResponse, OutcomeRequest, OutcomeResponse, ScanRequest, SetRequest, SetResponse,
};
use flux_proto::status;
use tonic::{Request, Response, Status};

use super::KvApi;
use super::batch::Batch;
use super::request_id;
use super::scan::{self, ScanStream};
use crate::execute::Execute;

#[tonic::async_trait]
impl<E: Execute> Kv for KvApi<E> {
    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        self.call(request).await
    }

    async fn set(&self, request: Request<SetRequest>) -> Result<Response<SetResponse>, Status> {
        self.call(request).await
    }

    async fn delete(
        &self,
        request: Request<DeleteRequest>,
    ) -> Result<Response<DeleteResponse>, Status> {
        self.call(request).await
    }

    async fn compare_and_set(
        &self,
        request: Request<CompareAndSetRequest>,
    ) -> Result<Response<CompareAndSetResponse>, Status> {
        self.call(request).await
    }

    async fn increment(
        &self,
        request: Request<IncrementRequest>,
    ) -> Result<Response<IncrementResponse>, Status> {
        self.call(request).await
    }

    async fn expire(
        &self,
        request: Request<ExpireRequest>,
    ) -> Result<Response<ExpireResponse>, Status> {
        self.call(request).await
    }

    async fn batch(
        &self,
        request: Request<BatchRequest>,
    ) -> Result<Response<BatchResponse>, Status> {
        let deadline = self.deadline(request.metadata())?;
        request_id::none_of(request.metadata())?;
        let refuse = |invalid| status::to_tonic(&status::from_invalid_field(&invalid));
        let BatchRequest {
            operations,
            consistency,
        } = request.into_inner();
        let is_stale = is_stale(consistency).map_err(refuse)?;
        if operations.len() > OPERATIONS_MAX {
            let invalid = InvalidField::new(
                "operations",
                format!(
                    "must be at most {OPERATIONS_MAX}, and are {}",
                    operations.len()
                ),
            );
            return Err(refuse(invalid));
        }
        let results = Batch::plan(operations, self.limits, is_stale)
            .run(self, deadline)
            .await;
        Ok(Response::new(BatchResponse { results }))
    }

    async fn outcome(
        &self,
        request: Request<OutcomeRequest>,
    ) -> Result<Response<OutcomeResponse>, Status> {
        self.call(request).await
    }

    type ScanStream = ScanStream;

    async fn scan(
        &self,
        request: Request<ScanRequest>,
    ) -> Result<Response<Self::ScanStream>, Status> {
        scan::start(self, request).map(Response::new)
    }
}

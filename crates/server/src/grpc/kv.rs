//! `flux.kv.v1.Kv`.

use flux_proto::convert::{InvalidField, OPERATIONS_MAX, plan_operation};
use flux_proto::kv::kv_server::Kv;
use flux_proto::kv::{
    BatchRequest, BatchResponse, CompareAndSetRequest, CompareAndSetResponse, DeleteRequest,
    DeleteResponse, ExpireRequest, ExpireResponse, GetRequest, GetResponse, IncrementRequest,
    IncrementResponse, OperationResult, ScanRequest, SetRequest, SetResponse,
};
use flux_proto::status;
use flux_types::{Error, ErrorCode, Outcome};
use futures_util::future::join_all;
use prost::Message as _;
use tonic::{Request, Response, Status};

use super::KvApi;
use super::scan::{self, ScanStream};
use crate::execute::Execute;

/// What an operation's result costs in a message beyond its own bytes: tag and length.
const RESULT_OVERHEAD_BYTES: usize = 16;

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
        let operations = request.into_inner().operations;
        if operations.len() > OPERATIONS_MAX {
            let invalid = InvalidField::new(
                "operations",
                format!(
                    "must be at most {OPERATIONS_MAX}, and are {}",
                    operations.len()
                ),
            );
            return Err(status::to_tonic(&status::from_invalid_field(&invalid)));
        }
        // A bad operation fails alone: the others are independent of it.
        let results = operations.into_iter().map(|operation| async {
            match plan_operation(operation, self.limits) {
                Ok((command, planned)) => {
                    let is_write = command.is_write();
                    let answer = self.execute(command, deadline).await;
                    (is_write, planned.result(answer))
                }
                Err(invalid) => (false, OperationResult::from(&invalid)),
            }
        });
        let results = join_all(results).await;
        Ok(Response::new(BatchResponse {
            results: within(results, self.message_bytes_max),
        }))
    }

    type ScanStream = ScanStream;

    async fn scan(
        &self,
        request: Request<ScanRequest>,
    ) -> Result<Response<Self::ScanStream>, Status> {
        scan::start(self, request).map(Response::new)
    }
}

/// Replaces results that no longer fit into one message by an error that says what became of the
/// operation, so that the others arrive.
fn within(results: Vec<(bool, OperationResult)>, bytes_max: usize) -> Vec<OperationResult> {
    let mut bytes = 0_usize;
    let fit = |(is_write, result): (bool, OperationResult)| {
        let size = result.encoded_len() + RESULT_OVERHEAD_BYTES;
        if bytes.saturating_add(size) <= bytes_max {
            bytes += size;
            return result;
        }
        OperationResult::from(&Error {
            code: ErrorCode::TooLarge,
            message: "the results of this batch are longer than a message may be".into(),
            outcome: if is_write {
                Outcome::Done
            } else {
                Outcome::NotDone
            },
        })
    };
    results.into_iter().map(fit).collect()
}

#[cfg(test)]
mod tests {
    use flux_proto::kv::operation_result::Result as Done;
    use flux_proto::kv::{GetResponse, OperationResult, SetResponse};
    use flux_proto::status::flux_error;

    use super::within;

    #[test]
    fn a_result_that_does_not_fit_is_replaced_and_says_what_was_done() {
        let get = |size: usize| {
            OperationResult::from(Done::Get(GetResponse {
                value: vec![b'x'; size].into(),
                found: true,
                ..GetResponse::default()
            }))
        };
        let set = OperationResult::from(Done::Set(SetResponse {
            success: true,
            ..SetResponse::default()
        }));
        let results = vec![
            (false, get(10)),
            (false, get(1000)),
            (true, get(1000)),
            (true, set.clone()),
        ];
        let kept = within(results, 500);
        assert_eq!(kept[0], get(10));
        assert_eq!(kept[3], set);
        let outcome = |result: &OperationResult| match &result.result {
            Some(Done::Error(status)) => flux_error(status).unwrap().outcome,
            other => panic!("{other:?}"),
        };
        assert_eq!(outcome(&kept[1]), "not-done");
        assert_eq!(outcome(&kept[2]), "done");
    }
}

//! The gRPC services of a tablet server: thin, they translate and count.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use uruk_base::rpc::MESSAGE_BYTES_MAX;
use uruk_base::task::Tasks;
use uruk_proto::calls::{CALLS_BYTES_MAX, SharedCalls, Spawn};
use uruk_proto::tablet::tablet_server_calls_server::TabletServerCallsServer;
use uruk_proto::tablet::tablet_server_control_server::{TabletServerControl, TabletServerControlServer};
use uruk_proto::tablet::tablet_server_server::{TabletServer, TabletServerServer};
use uruk_proto::tablet::{
    CheckAndMutateRequest, CheckAndMutateResponse, CloseTabletsRequest, CloseTabletsResponse, MergeTabletsOrder,
    MutateRowsRequest, MutateRowsResponse, OpenTabletsRequest, OpenTabletsResponse, OrderTaken, ReadModifyWriteRequest,
    ReadModifyWriteResponse, ReadRequest, ReadResponse, SetSchemaRequest, SetSchemaResponse, SortSegmentRequest,
    SortSegmentResponse, SplitTabletOrder,
};
use uruk_proto::{ErrorCode, RpcError, limits};

use super::Server;
use super::close::CloseKind;

/// The server, once it is registered; callers that come earlier are asked to try again.
#[derive(Clone, Debug)]
pub struct Service(pub tokio::sync::watch::Receiver<Option<Arc<Server>>>);

impl Service {
    /// All services; streams of calls are served by `tasks`.
    pub fn routes(self, tasks: &Tasks) -> Routes {
        let tasks = tasks.clone();
        let spawn: Spawn = Arc::new(move |work| tasks.spawn("calls of a client", work));
        let calls = TabletServerCallsServer::new(SharedCalls::new(self.clone(), spawn))
            .max_decoding_message_size(CALLS_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let data = TabletServerServer::new(self.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let control = TabletServerControlServer::new(self)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        Routes::new(data).add_service(calls).add_service(control)
    }

    fn server(&self) -> Result<Arc<Server>, RpcError> {
        let starting = || RpcError::new(ErrorCode::Unavailable, "the tablet server is starting");
        self.0.borrow().clone().ok_or_else(starting)
    }

    /// The server, if the order is meant for this incarnation.
    fn ordered(&self, server_id: u64) -> Result<Arc<Server>, RpcError> {
        let server = self.server()?;
        let own = server.incarnation.server_id;
        if own.0 != server_id {
            let message = format!("the order is for server-{server_id}, this is {own}");
            return Err(RpcError::new(ErrorCode::Fenced, message));
        }
        server.incarnation.check()?;
        Ok(server)
    }
}

#[tonic::async_trait]
impl TabletServer for Service {
    type ReadStream = Pin<Box<dyn Stream<Item = Result<ReadResponse, Status>> + Send>>;

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let stream = self.server()?.read(request.into_inner()).await?;
        Ok(Response::new(Box::pin(stream)))
    }

    async fn mutate_rows(&self, request: Request<MutateRowsRequest>) -> Result<Response<MutateRowsResponse>, Status> {
        let request = request.into_inner();
        let rows = request.entries.len();
        if rows > limits::BATCH_ROWS_MAX {
            let message = format!("a batch of {rows} rows; the limit is {}", limits::BATCH_ROWS_MAX);
            return Err(RpcError::new(ErrorCode::InvalidArgument, message).into());
        }
        Ok(Response::new(self.server()?.mutate_rows(request).await?))
    }

    async fn check_and_mutate(
        &self,
        request: Request<CheckAndMutateRequest>,
    ) -> Result<Response<CheckAndMutateResponse>, Status> {
        Ok(Response::new(self.server()?.check_and_mutate(request.into_inner()).await?))
    }

    async fn read_modify_write(
        &self,
        request: Request<ReadModifyWriteRequest>,
    ) -> Result<Response<ReadModifyWriteResponse>, Status> {
        Ok(Response::new(self.server()?.read_modify_write(request.into_inner()).await?))
    }
}

#[tonic::async_trait]
impl TabletServerControl for Service {
    async fn open_tablets(
        &self,
        request: Request<OpenTabletsRequest>,
    ) -> Result<Response<OpenTabletsResponse>, Status> {
        let request = request.into_inner();
        self.ordered(request.server_id)?.order_open(request.tablets);
        Ok(Response::new(OpenTabletsResponse {}))
    }

    async fn close_tablets(
        &self,
        request: Request<CloseTabletsRequest>,
    ) -> Result<Response<CloseTabletsResponse>, Status> {
        let request = request.into_inner();
        let kind = if request.discard { CloseKind::Discard } else { CloseKind::Flush };
        self.ordered(request.server_id)?.order_close(request.tablets, kind);
        Ok(Response::new(CloseTabletsResponse {}))
    }

    async fn sort_segment(
        &self,
        request: Request<SortSegmentRequest>,
    ) -> Result<Response<SortSegmentResponse>, Status> {
        let request = request.into_inner();
        let server = self.ordered(request.server_id)?;
        Ok(Response::new(server.sort_segment(request).await?))
    }

    async fn split_tablet(&self, request: Request<SplitTabletOrder>) -> Result<Response<OrderTaken>, Status> {
        let order = request.into_inner();
        self.ordered(order.server_id)?.order_split(order)?;
        Ok(Response::new(OrderTaken {}))
    }

    async fn merge_tablets(&self, request: Request<MergeTabletsOrder>) -> Result<Response<OrderTaken>, Status> {
        let order = request.into_inner();
        self.ordered(order.server_id)?.order_merge(order)?;
        Ok(Response::new(OrderTaken {}))
    }

    async fn set_schema(&self, request: Request<SetSchemaRequest>) -> Result<Response<SetSchemaResponse>, Status> {
        let request = request.into_inner();
        self.ordered(request.server_id)?.set_schema(request)?;
        Ok(Response::new(SetSchemaResponse {}))
    }
}

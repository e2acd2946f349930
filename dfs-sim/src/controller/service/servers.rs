//! Chunk servers: registration, heartbeats, health.

use uruk_proto::dfs::*;
use uruk_proto::{ErrorCode, RpcError};

use super::invalid;
use crate::controller::command::{Command, Outcome, Refusal};
use crate::controller::core::Core;
use crate::controller::fleet::{Orders, Phase, PieceReport, Report};
use crate::controller::id::{ChunkId, ChunkServerId, PieceId, SegmentId};
use crate::controller::state::SegmentState;

impl Core {
    pub(super) async fn register_chunk_server(
        &self,
        request: RegisterChunkServerRequest,
    ) -> Result<RegisterChunkServerResponse, RpcError> {
        let RegisterChunkServerRequest { folder_identity, address, zone, incarnation, boot_id: _ } = request;
        if !address.contains(':') {
            return Err(invalid(format!("the address {address:?} is not host:port")));
        }
        let founding_seed = self.random.u64();
        let command =
            Command::RegisterServer { folder_identity, address: address.clone(), zone, incarnation, founding_seed };
        let Outcome::Server(server) = self.propose(command).await? else {
            return Err(RpcError::new(ErrorCode::Internal, "a server registered, and something else was answered"));
        };
        self.with_fleet(|_, fleet, _| fleet.registered(server, incarnation))?;
        tracing::info!(%server, %address, incarnation, "chunk server registered");
        Ok(RegisterChunkServerResponse { server_id: server.0, heartbeat_ms: self.config.heartbeat.as_millis() as u32 })
    }

    pub(super) fn chunk_server_heartbeat(
        &self,
        request: ChunkServerHeartbeatRequest,
    ) -> Result<ChunkServerHeartbeatResponse, RpcError> {
        let server = ChunkServerId(request.server_id);
        let incarnation = request.incarnation;
        let report = report(request);
        self.with_fleet(|state, fleet, now| {
            // An older process of the server, or a late request of one: it must not speak for the newer one.
            if state.servers().get(&server).is_none_or(|s| s.incarnation != incarnation) {
                let refusal = Refusal::NoSuchServer(server);
                return Err(RpcError::new(ErrorCode::NotFound, format!("{refusal} in this incarnation; register")));
            }
            let orders = fleet.heartbeat(now, server, report);
            Ok(response(orders, fleet.term()))
        })?
    }

    pub(super) fn health(&self) -> Result<HealthResponse, RpcError> {
        self.with_fleet(|state, fleet, now| {
            let servers = state.servers().iter().map(|(id, record)| {
                let health = fleet.server_health(*id, now);
                ChunkServerHealth {
                    server_id: id.0,
                    address: record.address.clone(),
                    zone: record.zone.clone(),
                    live: health.phase == Phase::Live,
                    last_heartbeat_ms_ago: health.last_heartbeat_ago.as_millis() as u64,
                    chunks: health.chunks,
                    segments: health.segments,
                    used_bytes: health.used_bytes,
                    free_bytes: health.free_bytes,
                    refusing_writes: health.refusing_writes,
                }
            });
            let servers = servers.collect();
            let (files, file_bytes) = state.file_totals();
            let is_open = |s: &&crate::controller::state::Segment| !matches!(s.state, SegmentState::Sealed { .. });
            let last_segments = state.kept_logs().filter_map(|(_, log)| log.segments.values().next_back());
            let copies = fleet.copy_health();
            HealthResponse {
                servers,
                files,
                file_bytes,
                logs: state.kept_logs().count() as u64,
                open_segments: last_segments.filter(is_open).count() as u64,
                under_replicated: copies.under_replicated,
                unavailable: copies.unavailable,
                copies_in_flight: copies.copies_in_flight,
                damaged_found: copies.damaged_found,
                repaired: copies.repaired,
                copies_known: fleet.is_counted(),
            }
        })
    }
}

fn report(request: ChunkServerHeartbeatRequest) -> Report {
    let chunks = request.chunks.iter().map(|r| PieceReport {
        piece: PieceId::Chunk(ChunkId(r.chunk_id)),
        bytes: r.bytes,
        sealed: true,
        damaged: r.damaged,
        behind: false,
        deleted: r.deleted,
    });
    let segments = request.segments.iter().map(|r| PieceReport {
        piece: PieceId::Segment(SegmentId(r.segment_id)),
        bytes: r.length,
        sealed: r.sealed,
        damaged: r.damaged,
        behind: r.behind,
        deleted: r.deleted,
    });
    Report {
        full: request.full,
        term_seen: request.term_seen,
        pieces: chunks.chain(segments).collect(),
        free_bytes: request.free_bytes,
        used_bytes: request.used_bytes,
        refusing_writes: request.refusing_writes,
    }
}

fn response(orders: Orders, term: u64) -> ChunkServerHeartbeatResponse {
    let mut response =
        ChunkServerHeartbeatResponse { report_all: orders.report_all, term, ..ChunkServerHeartbeatResponse::default() };
    for piece in orders.delete {
        match piece {
            PieceId::Chunk(id) => response.delete_chunks.push(id.0),
            PieceId::Segment(id) => response.delete_segments.push(id.0),
        }
    }
    for (piece, wanted) in orders.finish {
        let segment_id = piece.number();
        response.finish.push(FinishSegmentRequest { segment_id, length: wanted.bytes, crc: wanted.crc });
    }
    for (piece, wanted, sources) in orders.copies {
        response.copies.push(CopyOrder {
            id: piece.number(),
            is_segment: matches!(piece, PieceId::Segment(_)),
            bytes: wanted.bytes,
            crc: wanted.crc,
            sources,
        });
    }
    response
}

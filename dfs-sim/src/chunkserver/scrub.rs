//! Reads all chunks and sealed segments at a limited rate and checks every block, so that damage is
//! found while other copies are still good. It reads with `read_at`: an unreadable sector is then an
//! error, where a map would be a signal.

use std::sync::Arc;
use std::time::Duration;

use super::Core;
use super::block_reader::BlockReader;
use super::error::StoreError;
use super::service::Place;

/// Bytes read at once; a multiple of the checksum block.
const PIECE_BYTES: u64 = 256 << 10;

/// Runs for as long as the server.
pub(super) async fn run(core: Arc<Core>) {
    if core.host.config.scrub_bytes_per_s == 0 {
        return;
    }
    let pause = Duration::from_millis(core.host.config.scrub_pause_ms);
    loop {
        core.host.env.clock.sleep(core.host.env.random.jitter(pause)).await;
        let bytes = pass(&core).await;
        tracing::debug!(bytes, "a pass of the background check ends");
    }
}

/// Checks everything once; returns the bytes read.
pub(super) async fn pass(core: &Arc<Core>) -> u64 {
    let mut bytes = 0;
    for (id, chunk) in core.chunks.states() {
        if chunk.damaged.is_none() {
            let place = Place { core: core.clone(), id, is_segment: false };
            bytes += check(&place, core.chunks.scrub_reader(id).await).await;
        }
    }
    for (id, replica) in core.segments.present() {
        if replica.glance().damaged.is_none() {
            let place = Place { core: core.clone(), id, is_segment: true };
            match replica.scrub_reader().await {
                Ok(Some(reader)) => bytes += check(&place, Ok(reader)).await,
                Ok(None) => {}
                Err(error) => bytes += check(&place, Err(error)).await,
            }
        }
    }
    bytes
}

async fn check(place: &Place, opened: Result<BlockReader, StoreError>) -> u64 {
    let host = &place.core.host;
    let reader = match opened {
        Ok(reader) => reader,
        Err(error) => {
            forgive_deleted(place, error);
            return 0;
        }
    };
    let mut at = 0;
    while at < reader.bytes {
        let bytes = PIECE_BYTES.min(reader.bytes - at);
        if let Err(error) = reader.read(at, bytes).await {
            forgive_deleted(place, error);
            break;
        }
        at += bytes;
        let seconds = bytes as f64 / host.config.scrub_bytes_per_s.max(1) as f64;
        host.env.clock.sleep(Duration::from_secs_f64(seconds)).await;
    }
    at
}

/// A file that was deleted since the pass began is no damage.
fn forgive_deleted(place: &Place, error: StoreError) {
    let here = match place.is_segment {
        true => place.core.segments.get(place.id).is_ok_and(|replica| replica.glance().present),
        false => place.core.chunks.state(place.id).is_some(),
    };
    if here {
        place.blame(error);
    }
}

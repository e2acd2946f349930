//! How a tablet server splits and merges, to the letter of the ADR, without any data.

use super::*;

/// Splits at the order's key, or in the middle of `[start, end)` if that is a pair of numbers.
pub async fn split(shared: Arc<FakeShared>, order: SplitTabletOrder) {
    let key = order.tablet.expect("a tablet");
    let Some(row) = shared.rows.lock().get(&key.tablet_id).cloned().filter(|row| row.epoch == key.epoch) else {
        return;
    };
    if shared.holds.lock().decline {
        return decline(&shared, order.procedure, key).await;
    }
    let row = flushed(&shared, row).await;
    let at = if order.at.is_empty() { middle(&row) } else { order.at };
    let share = |file: &FileRef| FileShare {
        path: file.path.clone(),
        low: file.low.clone(),
        left_bytes: if file.low >= at { 0 } else { file.bytes.div_ceil(2) },
        left_cells: 0,
        right_bytes: if !file.high.is_empty() && file.high <= at { 0 } else { file.bytes.div_ceil(2) },
        right_cells: 0,
    };
    let request = TabletSplitRequest {
        server_id: shared.id,
        tablet: Some(key),
        procedure: order.procedure,
        at: at.clone(),
        files: row.groups.iter().flat_map(|group| &group.files).map(share).collect(),
        flushed_seq: row.flushed_seq,
        report_number: 0,
    };
    let answer = shared.call(|mut master| {
        let request = request.clone();
        async move { master.tablet_split(request).await }
    });
    match answer.await {
        Ok(response) => {
            if shared.holds.lock().reshape_answer {
                shared.rows.lock().remove(&key.tablet_id);
                return; // it was lost; the halves are opened by order
            }
            shared.rows.lock().remove(&key.tablet_id);
            for half in [response.left, response.right] {
                opened(shared.clone(), half.expect("a half")).await;
            }
        }
        Err(_) => decline(&shared, order.procedure, key).await,
    }
}

/// Merges both.
pub async fn merge(shared: Arc<FakeShared>, order: MergeTabletsOrder) {
    let (left, right) = (order.left.expect("a tablet"), order.right.expect("a tablet"));
    if shared.holds.lock().decline {
        return decline(&shared, order.procedure, left).await;
    }
    let row = |key: TabletKey| shared.rows.lock().get(&key.tablet_id).cloned().filter(|row| row.epoch == key.epoch);
    let (Some(left_row), Some(right_row)) = (row(left), row(right)) else { return };
    let (left_row, right_row) = (flushed(&shared, left_row).await, flushed(&shared, right_row).await);
    let memory_file = format!("tables/{}/{}-{}.mem", left_row.table_id, shared.id, shared.next());
    shared.objects.put(&memory_file.as_str().into(), "memory".into()).await.expect("stored");
    let request = TabletsMergedRequest {
        server_id: shared.id,
        left: Some(left),
        right: Some(right),
        procedure: order.procedure,
        left_flushed_seq: left_row.flushed_seq,
        right_flushed_seq: right_row.flushed_seq,
        memory_file,
        report_number: 0,
    };
    let answer = shared.call(|mut master| {
        let request = request.clone();
        async move { master.tablets_merged(request).await }
    });
    match answer.await {
        Ok(response) => {
            for key in [left, right] {
                shared.rows.lock().remove(&key.tablet_id);
            }
            if !shared.holds.lock().reshape_answer {
                opened(shared.clone(), response.row.expect("a row")).await;
            }
        }
        Err(_) => decline(&shared, order.procedure, left).await,
    }
}

/// Everything it has is in files, and no log but its own is needed.
async fn flushed(shared: &Arc<FakeShared>, row: MetaRow) -> MetaRow {
    let id = row.tablet_id;
    flush(shared, row).await;
    shared.rows.lock().get(&id).cloned().expect("it was just flushed")
}

/// Has the procedure ended, then reads the row, then goes on serving.
async fn decline(shared: &Arc<FakeShared>, procedure: u64, key: TabletKey) {
    let request = ProcedureDeclinedRequest { server_id: shared.id, procedure, reason: "one hot row".into() };
    let declined = shared.call(|mut master| {
        let request = request.clone();
        async move { master.procedure_declined(request).await }
    });
    let request = GetTabletRequest { tablet_id: key.tablet_id };
    let is_over = declined.await.is_ok();
    let row = shared.call(|mut master| async move { master.get_tablet(request).await }).await;
    let row = row.ok().and_then(|response| response.row);
    let is_own = row.as_ref().is_some_and(|row| row.server_id == shared.id && row.epoch == key.epoch);
    assert!(!is_own || !is_over || row.is_some_and(|row| row.procedure != procedure), "over, and the row says so");
    if !is_own {
        shared.rows.lock().remove(&key.tablet_id);
    }
}

fn middle(row: &MetaRow) -> bytes::Bytes {
    let (start, end) = numbers(row);
    format!("{:03}", (start + end) / 2).into()
}

/// How many of the keys from 000 to 999 it has.
pub fn width(row: &MetaRow) -> u64 {
    let (start, end) = numbers(row);
    end.saturating_sub(start)
}

fn numbers(row: &MetaRow) -> (u64, u64) {
    let number =
        |key: &[u8], default| std::str::from_utf8(key).ok().and_then(|key| key.parse().ok()).unwrap_or(default);
    (number(&row.start, 0), number(&row.end, 1_000))
}

//! Point reads, and the keys at which a table's tablets end.

use bytes::Bytes;
use uruk_proto::cell_batch::{self, unpack};
use uruk_proto::tablet::ReadRequest;

use crate::error::{Error, Result};
use crate::filter::ReadOptions;
use crate::locate::Wanted;
use crate::mutation::check_row_key;
use crate::retry::{Effect, Failure};
use crate::row::Row;
use crate::table::{Table, Target};

impl Table {
    /// The row of this key; None when it has no cell, or none that the filter lets through.
    ///
    /// One round trip when the tablet's location is known.
    ///
    /// # Errors
    /// A bad key or filter, an unknown table or family, or no answer within the deadline.
    pub async fn read_row(&self, key: impl AsRef<[u8]>, options: &ReadOptions) -> Result<Option<Row>> {
        let key = key.as_ref();
        check_row_key(key)?;
        let key = Bytes::copy_from_slice(key);
        let (_, _) = self.with_schema(|schema| options.filter.to_message(schema)).await?;
        let request = |Target { mut client, tablet, schema, row }: Target| {
            let request = ReadRequest {
                tablet: Some(tablet),
                ranges: Vec::new(),
                rows: vec![row.clone()],
                filter: Some(options.filter.to_message(&schema)?),
                rows_limit: 0,
                reverse: false,
                no_cache_fill: false,
            };
            Ok(async move { Ok((client.read_rows(request).await?, row, schema)) })
        };
        let (batches, row, schema) = self.call(&key, Effect::Read, 0, request).await?;
        let Some(mut row) = join(&row, batches)? else { return Ok(None) };
        row.key = key;
        let schema = self.naming(schema, std::slice::from_ref(&row)).await?;
        Ok(Some(Row::new(row, schema)))
    }

    /// The last keys of the table's tablets, each the first key beyond, in order; the last is empty. Those of
    /// a salted table are the tablets' ends without their prefixes: each cuts the rows of all prefixes.
    pub async fn sample_row_keys(&self) -> Result<Vec<Bytes>> {
        let salt = self.salt();
        let mut ends = self.tablet_ends().await?;
        if salt.is_none() {
            return Ok(ends);
        }
        ends.retain(|end| end.len() > 1);
        let mut keys = ends.iter().map(|end| salt.key(end)).collect::<Result<Vec<Bytes>>>()?;
        keys.sort_unstable();
        keys.dedup();
        keys.push(Bytes::new());
        Ok(keys)
    }

    async fn tablet_ends(&self) -> Result<Vec<Bytes>> {
        let mut ends: Vec<Bytes> = Vec::new();
        let mut attempts = self.attempts(Effect::Read);
        let mut wanted = Wanted { asked_after: Some(self.now()), from_leader: false };
        loop {
            let resolved = self.resolved();
            let start = ends.last().cloned().unwrap_or_default();
            match resolved.locations.find(&self.core, &start, wanted, attempts.left(self.now())).await {
                Ok(location) => ends.push(location.range.end.clone()),
                Err(Error::Refused { code, message, .. }) => {
                    let failure = Failure::answered(code, message);
                    wanted = self.after(&resolved, None, failure, &mut attempts).await?;
                }
                Err(other) => return Err(other),
            }
            if ends.last().is_some_and(Bytes::is_empty) {
                return Ok(ends);
            }
        }
    }
}

/// The one row that `batches` hold pieces of; None if there is none.
pub(crate) fn join(key: &[u8], batches: Vec<Bytes>) -> Result<Option<cell_batch::Row>> {
    let mut joined: Option<cell_batch::Row> = None;
    let mut goes_on = false;
    for batch in batches {
        for piece in unpack(batch).map_err(|error| Error::bad_response(error.to_string()))? {
            if piece.row.key != key || piece.goes_on_from_before != goes_on || (joined.is_some() && !goes_on) {
                return Err(Error::bad_response(format!(
                    "a piece of row \"{}\" came for row \"{}\"",
                    piece.row.key.escape_ascii(),
                    key.escape_ascii()
                )));
            }
            goes_on = piece.goes_on_in_next;
            match &mut joined {
                Some(row) => row.cells.extend(piece.row.cells),
                None => joined = Some(piece.row),
            }
        }
    }
    if goes_on {
        return Err(Error::bad_response(format!("row \"{}\" ends in the middle", key.escape_ascii())));
    }
    Ok(joined)
}

#[cfg(test)]
mod tests {
    use uruk_proto::FamilyId;
    use uruk_proto::cell_batch::BatchBuilder;

    use super::*;

    fn piece(key: &str, value: &str, from_before: bool, in_next: bool) -> Bytes {
        let mut builder = BatchBuilder::new();
        builder.start_row(key.as_bytes(), from_before);
        builder.push(FamilyId(1), &Bytes::from("q"), 1, value.as_bytes());
        if in_next {
            builder.break_row();
        }
        builder.finish()
    }

    #[test]
    fn pieces_join_to_one_row() {
        let row = join(b"k", vec![piece("k", "1", false, true), piece("k", "2", true, false)]).unwrap().unwrap();
        assert_eq!(row.cells.iter().map(|cell| cell.value.clone()).collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(join(b"k", vec![Bytes::new()]), Ok(None));
    }

    #[test]
    fn refuses_pieces_that_do_not_fit() {
        let refused = |batches| assert!(matches!(join(b"k", batches), Err(Error::BadResponse { .. })));
        refused(vec![piece("other", "1", false, false)]);
        refused(vec![piece("k", "1", false, true)]);
        refused(vec![piece("k", "1", true, false)]);
        refused(vec![piece("k", "1", false, false), piece("k", "2", false, false)]);
        refused(vec![Bytes::from_static(b"\xff")]);
    }
}

//! Mutations of one row, packed: the same bytes travel in the request and stand in the commit log.
//!
//! ```text
//! mutations := mutation*                              at least one
//! mutation  := 1 family qualifier timestamp value     set a cell
//!            | 2 family qualifier start end           delete from a column, timestamps [start, end)
//!            | 3 family                               delete a family of the row
//!            | 4                                      delete the row
//! family := varint      qualifier, value := length (varint), bytes      timestamp, start, end := i64, little endian
//! ```
//! A timestamp of −1 asks the server for its time. An `end` of `i64::MAX` means no end.

use bytes::{BufMut, Bytes};

use crate::codec::{DecodeError, Reader, put_bytes, put_varint};
use crate::id::FamilyId;
use crate::limits;

/// The timestamp that asks the server to give its own.
pub const SERVER_TIME: i64 = -1;

/// One change of a row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Mutation {
    /// Sets a cell.
    SetCell {
        /// The column's family.
        family: FamilyId,
        /// The column's qualifier.
        qualifier: Bytes,
        /// Microseconds, or [`SERVER_TIME`].
        timestamp: i64,
        /// The cell's content.
        value: Bytes,
    },
    /// Deletes the column's cells with timestamps in `[start, end)`.
    DeleteFromColumn {
        /// The column's family.
        family: FamilyId,
        /// The column's qualifier.
        qualifier: Bytes,
        /// First timestamp.
        start: i64,
        /// First timestamp beyond; `i64::MAX` for no end.
        end: i64,
    },
    /// Deletes all cells of a family in the row.
    DeleteFromFamily {
        /// The family.
        family: FamilyId,
    },
    /// Deletes all cells of the row.
    DeleteFromRow,
}

impl Mutation {
    /// Appends the packed form.
    pub fn put(&self, out: &mut impl BufMut) {
        match self {
            Mutation::SetCell { family, qualifier, timestamp, value } => {
                out.put_u8(1);
                put_varint(out, family.0);
                put_bytes(out, qualifier);
                out.put_i64_le(*timestamp);
                put_bytes(out, value);
            }
            Mutation::DeleteFromColumn { family, qualifier, start, end } => {
                out.put_u8(2);
                put_varint(out, family.0);
                put_bytes(out, qualifier);
                out.put_i64_le(*start);
                out.put_i64_le(*end);
            }
            Mutation::DeleteFromFamily { family } => {
                out.put_u8(3);
                put_varint(out, family.0);
            }
            Mutation::DeleteFromRow => out.put_u8(4),
        }
    }

    /// The family it touches; None for the whole row.
    pub fn family(&self) -> Option<FamilyId> {
        match self {
            Mutation::SetCell { family, .. }
            | Mutation::DeleteFromColumn { family, .. }
            | Mutation::DeleteFromFamily { family } => Some(*family),
            Mutation::DeleteFromRow => None,
        }
    }
}

/// Packs mutations.
pub fn pack<'a>(mutations: impl IntoIterator<Item = &'a Mutation>) -> Bytes {
    let mut out = Vec::new();
    for mutation in mutations {
        mutation.put(&mut out);
    }
    out.into()
}

/// Unpacks and checks mutations: sizes within [`limits`], families not 0, timestamps −1 or not
/// negative, time ranges not empty, at least one and at most 100,000 mutations.
pub fn unpack(packed: Bytes) -> Result<Vec<Mutation>, DecodeError> {
    let mut reader = Reader::new("mutation", packed);
    let mut mutations = Vec::with_capacity(1);
    while !reader.is_at_end() {
        if mutations.len() == limits::MUTATIONS_PER_ROW_MAX {
            return Err(reader.error("more than 100000 mutations in one row"));
        }
        mutations.push(read(&mut reader)?);
    }
    if mutations.is_empty() {
        return Err(reader.error("no mutations provided"));
    }
    Ok(mutations)
}

fn read(reader: &mut Reader) -> Result<Mutation, DecodeError> {
    match reader.u8()? {
        1 => {
            let (family, qualifier) = (read_family(reader)?, read_qualifier(reader)?);
            let timestamp = reader.i64()?;
            if timestamp < SERVER_TIME {
                return Err(reader.error("negative timestamp"));
            }
            let value = reader.bytes()?;
            if value.len() > limits::VALUE_BYTES_MAX {
                return Err(reader.error("value longer than 100 MiB"));
            }
            Ok(Mutation::SetCell { family, qualifier, timestamp, value })
        }
        2 => {
            let (family, qualifier) = (read_family(reader)?, read_qualifier(reader)?);
            let (start, end) = (reader.i64()?, reader.i64()?);
            if start < 0 || start >= end {
                return Err(reader.error("empty or negative time range"));
            }
            Ok(Mutation::DeleteFromColumn { family, qualifier, start, end })
        }
        3 => Ok(Mutation::DeleteFromFamily { family: read_family(reader)? }),
        4 => Ok(Mutation::DeleteFromRow),
        _ => Err(reader.error("unknown kind of mutation")),
    }
}

fn read_family(reader: &mut Reader) -> Result<FamilyId, DecodeError> {
    match reader.varint()? {
        0 => Err(reader.error("family 0")),
        id => Ok(FamilyId(id)),
    }
}

fn read_qualifier(reader: &mut Reader) -> Result<Bytes, DecodeError> {
    let qualifier = reader.bytes()?;
    if qualifier.len() > limits::QUALIFIER_BYTES_MAX {
        return Err(reader.error("qualifier longer than 16 KiB"));
    }
    Ok(qualifier)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mutation() -> impl Strategy<Value = Mutation> {
        let family = any::<u64>().prop_map(|id| FamilyId(id.max(1)));
        let bytes = || prop::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from);
        prop_oneof![
            (family.clone(), bytes(), -1i64..i64::MAX, bytes()).prop_map(|(family, qualifier, timestamp, value)| {
                Mutation::SetCell { family, qualifier, timestamp, value }
            }),
            (family.clone(), bytes(), 0i64..1000, 1i64..1000).prop_map(|(family, qualifier, start, len)| {
                Mutation::DeleteFromColumn { family, qualifier, start, end: start + len }
            }),
            family.prop_map(|family| Mutation::DeleteFromFamily { family }),
            Just(Mutation::DeleteFromRow),
        ]
    }

    proptest! {
        #[test]
        fn packed_mutations_survive(mutations in prop::collection::vec(mutation(), 1..8)) {
            prop_assert_eq!(unpack(pack(&mutations)).unwrap(), mutations);
        }

        #[test]
        fn any_bytes_unpack_or_fail_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = unpack(bytes.into());
        }

        #[test]
        fn a_cut_mutation_is_refused(mutation in mutation(), cut in 1usize..8) {
            let packed = pack([&mutation]);
            prop_assert!(unpack(packed.slice(..packed.len().saturating_sub(cut))).is_err());
        }
    }

    #[test]
    fn refuses_what_breaks_a_limit() {
        let set = |timestamp, qualifier: usize| Mutation::SetCell {
            family: FamilyId(1),
            qualifier: vec![b'q'; qualifier].into(),
            timestamp,
            value: Bytes::new(),
        };
        let why = |m: &Mutation| unpack(pack([m])).unwrap_err().why;
        assert_eq!(why(&set(-2, 0)), "negative timestamp");
        assert_eq!(why(&set(0, limits::QUALIFIER_BYTES_MAX + 1)), "qualifier longer than 16 KiB");
        assert_eq!(why(&Mutation::DeleteFromFamily { family: FamilyId(0) }), "family 0");
        assert_eq!(unpack(Bytes::new()).unwrap_err().why, "no mutations provided");
        let many = pack(std::iter::repeat_n(&Mutation::DeleteFromRow, limits::MUTATIONS_PER_ROW_MAX + 1));
        assert_eq!(unpack(many).unwrap_err().why, "more than 100000 mutations in one row");
    }
}

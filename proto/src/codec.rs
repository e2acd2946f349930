//! Reading and writing the packed formats: LEB128 varints and length-prefixed bytes.

use bytes::{BufMut, Bytes};

/// Packed bytes that are not what they should be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("bad {what} at byte {offset}: {why}")]
pub struct DecodeError {
    /// What was being read.
    pub what: &'static str,
    /// Where in the input.
    pub offset: usize,
    /// What is wrong.
    pub why: &'static str,
}

/// Appends `value` as a LEB128 varint.
pub fn put_varint(out: &mut impl BufMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// Appends the length as a varint, then the bytes.
pub fn put_bytes(out: &mut impl BufMut, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.put_slice(bytes);
}

/// A cursor over shared bytes; what it returns are slices of them, not copies.
#[derive(Clone, Debug)]
pub struct Reader {
    input: Bytes,
    offset: usize,
    what: &'static str,
}

impl Reader {
    /// Reads `input`; errors name it `what`.
    pub fn new(what: &'static str, input: Bytes) -> Reader {
        Reader { input, offset: 0, what }
    }

    /// An error at the cursor.
    pub fn error(&self, why: &'static str) -> DecodeError {
        DecodeError { what: self.what, offset: self.offset, why }
    }

    /// Whether everything was read.
    pub fn is_at_end(&self) -> bool {
        self.offset == self.input.len()
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        let byte = *self.input.get(self.offset).ok_or_else(|| self.error("ends early"))?;
        self.offset += 1;
        Ok(byte)
    }

    /// A LEB128 varint.
    pub fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7F);
            if shift == 63 && bits > 1 {
                return Err(self.error("number beyond 64 bits"));
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(self.error("number beyond 64 bits"))
    }

    /// The next `len` bytes.
    pub fn slice(&mut self, len: usize) -> Result<Bytes, DecodeError> {
        let end = self.offset.checked_add(len).filter(|end| *end <= self.input.len());
        let end = end.ok_or_else(|| self.error("ends early"))?;
        let slice = self.input.slice(self.offset..end);
        self.offset = end;
        Ok(slice)
    }

    /// Bytes behind their length.
    pub fn bytes(&mut self) -> Result<Bytes, DecodeError> {
        let len = self.varint()?;
        let len = usize::try_from(len).map_err(|_| self.error("length beyond memory"))?;
        self.slice(len)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let end = self.offset.checked_add(N).filter(|end| *end <= self.input.len());
        let end = end.ok_or_else(|| self.error("ends early"))?;
        let array = self.input[self.offset..end].try_into().expect("N bytes were checked");
        self.offset = end;
        Ok(array)
    }

    /// Four bytes, little endian.
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Eight bytes, little endian.
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Eight bytes, little endian.
    pub fn i64(&mut self) -> Result<i64, DecodeError> {
        Ok(i64::from_le_bytes(self.array()?))
    }
}

//! Reading of an untrusted byte string from front to back. Nothing here can panic or allocate more than the input.

use crate::error::quote;

pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// Length of the whole input.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The next `count` bytes; `what` they are, for the message.
    pub(super) fn take(&mut self, count: usize, what: &str) -> Result<&'a [u8], String> {
        if count > self.remaining() {
            return Err(format!("ends inside {}: the file is truncated or corrupt", quote(what)));
        }
        let taken = &self.bytes[self.at..self.at + count];
        self.at += count;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], String> {
        let taken = self.take(N, what)?;
        Ok(taken.try_into().expect("take returns as many bytes as asked for"))
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, String> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, String> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// Checks that `count` items of at least `least_bytes` each can still follow.
    pub(super) fn fitting(&self, count: u64, least_bytes: usize, what: &str) -> Result<usize, String> {
        let room = self.remaining() / least_bytes;
        match usize::try_from(count) {
            Ok(count) if count <= room => Ok(count),
            _ => {
                let what = quote(what);
                Err(format!(
                    "claims {count} items in {what}, room is left for {room}: the file is truncated or corrupt"
                ))
            }
        }
    }

    /// A string with its length before it.
    pub(super) fn string(&mut self, what: &str) -> Result<&'a str, String> {
        let claimed = self.u64(what)?;
        let length = self.fitting(claimed, 1, what)?;
        let bytes = self.take(length, what)?;
        std::str::from_utf8(bytes).map_err(|_| format!("{} is not valid UTF-8", quote(what)))
    }
}

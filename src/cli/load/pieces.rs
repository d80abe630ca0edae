//! [`Pieces`]: hashes that come field by field, as [records](Record) of bounded size.

use super::{Change, Record};

/// A piece is full when it has so many fields, or so many bytes.
const PIECE_FIELDS: usize = 1024;
const PIECE_BYTES: usize = 256 << 10;

/// Gathers the fields of one hash after the other. Each of its methods gives out the record that is full by that.
#[derive(Default)]
pub(crate) struct Pieces {
    record: Option<Record>,
    fields: Vec<(Vec<u8>, Vec<u8>)>,
    bytes: usize,
}

impl Pieces {
    /// A hash begins.
    pub(crate) fn begin(&mut self, tree: Vec<u8>, key: Vec<u8>, expires_ms: Option<u64>) -> Option<Record> {
        let before = self.end();
        let change = Change::Hash { fields: Vec::new(), continued: false };
        self.record = Some(Record { tree: Some(tree), key, change, expires_ms });
        before
    }

    /// Whether there is a hash that a field can belong to.
    pub(crate) fn has_begun(&self) -> bool {
        self.record.is_some()
    }

    /// A field of the hash that has begun.
    pub(crate) fn field(&mut self, field: Vec<u8>, value: Vec<u8>) -> Option<Record> {
        let length = field.len() + value.len();
        let is_full = self.fields.len() >= PIECE_FIELDS || self.bytes + length > PIECE_BYTES;
        let full = if is_full && !self.fields.is_empty() { self.take(true) } else { None };
        self.bytes += length;
        self.fields.push((field, value));
        full
    }

    /// There is no other hash.
    pub(crate) fn end(&mut self) -> Option<Record> {
        self.take(false)
    }

    fn take(&mut self, goes_on: bool) -> Option<Record> {
        let mut record = self.record.take()?;
        if goes_on {
            let change = Change::Hash { fields: Vec::new(), continued: true };
            self.record = Some(Record { change, ..record.clone() });
        }
        self.bytes = 0;
        if let Change::Hash { fields, .. } = &mut record.change {
            *fields = std::mem::take(&mut self.fields);
        }
        Some(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_bounded_and_only_the_first_begins_a_hash() {
        let mut pieces = Pieces::default();
        assert!(!pieces.has_begun());
        let mut records = Vec::new();
        records.extend(pieces.begin(b"t".to_vec(), b"small".to_vec(), Some(7)));
        records.extend(pieces.field(b"f".to_vec(), b"v".to_vec()));
        records.extend(pieces.begin(b"t".to_vec(), b"many".to_vec(), Some(8)));
        for number in 0..2 * PIECE_FIELDS + 1 {
            records.extend(pieces.field(number.to_string().into_bytes(), Vec::new()));
        }
        records.extend(pieces.begin(b"t".to_vec(), b"wide".to_vec(), None));
        for number in 0..3_u8 {
            records.extend(pieces.field(vec![number], vec![0; PIECE_BYTES]));
        }
        records.extend(pieces.end());
        assert!(pieces.end().is_none() && !pieces.has_begun());
        let shown: Vec<_> = records
            .iter()
            .map(|record| {
                let key = String::from_utf8_lossy(&record.key);
                (key, record.fields().len(), record.makes_key(), record.expires_ms)
            })
            .collect();
        let expected = [
            ("small", 1, true, Some(7)),
            ("many", PIECE_FIELDS, true, Some(8)),
            ("many", PIECE_FIELDS, false, Some(8)),
            ("many", 1, false, Some(8)),
            ("wide", 1, true, None),
            ("wide", 1, false, None),
            ("wide", 1, false, None),
        ];
        assert_eq!(shown, expected.map(|(key, fields, begins, ends)| (key.into(), fields, begins, ends)));
    }
}

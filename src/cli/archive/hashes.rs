//! Hashes of Redis in an export: one collection for all trees, behind these.
//!
//! Layout, version 1, integers little-endian where nothing else is said:
//!
//! ```text
//! type     "hashes, version 1"   name: empty
//! key      number u64 big-endian | 0           value: expires: 0, or 1 and milliseconds since 1970 u64
//!                                                   | length of the tree's name u32 | that name | the key
//! key      number u64 big-endian | 1 | field   value: the field's value
//! ```
//!
//! Hashes are numbered from 1 on, so that keys ascend: each is followed by its fields.

use crate::cli::load::pieces::Pieces;
use crate::cli::load::{Change, Record};

/// What the collection is called in the stream.
pub(crate) const HASHES_KIND: &[u8] = b"hashes, version 1";

const HEAD: u8 = 0;
const FIELD: u8 = 1;

/// Makes of records of hashes those of the stream.
#[derive(Default)]
pub(crate) struct HashWriter {
    number: u64,
}

impl HashWriter {
    /// The keys and values of a record of a hash that names its tree.
    pub(crate) fn records(&mut self, record: Record) -> Vec<(Vec<u8>, Vec<u8>)> {
        let Record { tree, key, change, expires_ms } = record;
        let Change::Hash { fields, continued } = change else { unreachable!("only hashes are among them") };
        let mut records = Vec::with_capacity(fields.len() + 1);
        if !continued {
            self.number += 1;
            let tree = tree.unwrap_or_default();
            let mut value = vec![u8::from(expires_ms.is_some())];
            value.extend(expires_ms.map(u64::to_le_bytes).into_iter().flatten());
            // A name is of 4 KiB at most.
            value.extend_from_slice(&(tree.len() as u32).to_le_bytes());
            value.extend_from_slice(&tree);
            value.extend_from_slice(&key);
            records.push((self.key(HEAD, &[]), value));
        }
        records.extend(fields.into_iter().map(|(field, value)| (self.key(FIELD, &field), value)));
        records
    }

    fn key(&self, kind: u8, field: &[u8]) -> Vec<u8> {
        [&self.number.to_be_bytes(), &[kind][..], field].concat()
    }
}

/// Makes of those of the stream records of hashes.
#[derive(Default)]
pub(crate) struct HashReader {
    number: [u8; 8],
    pieces: Pieces,
}

impl HashReader {
    /// Takes a key and its value; the record that is full by that, if one is.
    ///
    /// # Errors
    /// What is wrong with them.
    pub(crate) fn read(&mut self, key: &[u8], value: Vec<u8>) -> Result<Option<Record>, &'static str> {
        let (number, rest) = key.split_first_chunk::<8>().ok_or("a part of a hash without its number")?;
        match rest.split_first() {
            Some((&HEAD, [])) => {
                let (tree, key, expires_ms) =
                    decode_head(&value).ok_or("a hash that does not say whose it is")?;
                self.number = *number;
                Ok(self.pieces.begin(tree, key, expires_ms))
            }
            Some((&FIELD, field)) if self.pieces.has_begun() && self.number == *number => {
                Ok(self.pieces.field(field.to_vec(), value))
            }
            Some((&FIELD, _)) => Err("a field of no hash"),
            _ => Err("a part of a hash of an unknown kind"),
        }
    }

    /// There is no more of them; the last record.
    pub(crate) fn end(&mut self) -> Option<Record> {
        self.pieces.end()
    }
}

type Head = (Vec<u8>, Vec<u8>, Option<u64>);

fn decode_head(value: &[u8]) -> Option<Head> {
    let (expires_ms, rest) = match value.split_first()? {
        (0, rest) => (None, rest),
        (1, rest) => {
            let (expires_ms, rest) = rest.split_first_chunk()?;
            (Some(u64::from_le_bytes(*expires_ms)), rest)
        }
        _ => return None,
    };
    let (length, rest) = rest.split_first_chunk()?;
    let (tree, key) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    Some((tree.to_vec(), key.to_vec(), expires_ms))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::archive::{Event, Reader, Writer};

    fn hash(key: &[u8], fields: &[(&[u8], &[u8])], continued: bool, expires_ms: Option<u64>) -> Record {
        let fields = fields.iter().map(|(field, value)| (field.to_vec(), value.to_vec())).collect();
        let (tree, change) = (Some(b"redis".to_vec()), Change::Hash { fields, continued });
        Record { tree, key: key.to_vec(), change, expires_ms }
    }

    #[test]
    fn version_1_is_these_bytes() {
        let mut writer = Writer::new(Vec::new()).expect("in memory");
        writer.tree(HASHES_KIND, b"").expect("in memory");
        let mut hashes = HashWriter::default();
        let records = [
            hash(b"a", &[(b"f", b"v")], false, Some(0x0102)),
            hash(b"a", &[(b"g", b"")], true, Some(0x0102)),
            hash(b"b", &[(b"f", b"w")], false, None),
        ];
        for (key, value) in records.into_iter().flat_map(|record| hashes.records(record)) {
            writer.record(&key, &value).expect("in memory");
        }
        writer.end_tree().expect("in memory");
        let bytes = writer.finish().expect("in memory");
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, GOLDEN);
    }

    const GOLDEN: &str = "4447534c4445585001000000293fd0065415000000110000006861736865732c2076657273696f6e2031a1fe\
        f1da52780000000900000013000000000000000000000100010201000000000000050000007265646973610a\
        0000000100000000000000000000010166760a0000000000000000000000000000010167090000000b000000\
        00000000000000020000050000007265646973620a00000001000000000000000000000201667726e7b44145\
        080000000500000000000000e59499e25a1000000001000000000000000500000000000000b7633980";

    #[test]
    fn the_bytes_of_version_1_are_read() {
        let bytes: Vec<u8> = (0..GOLDEN.len() / 2)
            .map(|at| u8::from_str_radix(&GOLDEN[2 * at..2 * at + 2], 16).expect("hexadecimal"))
            .collect();
        let mut reader = Reader::new(&bytes[..]).expect("sound");
        let (mut hashes, mut records) = (HashReader::default(), Vec::new());
        while let Some(event) = reader.next_event().expect("sound") {
            if let Event::Record { key, value } = event {
                records.extend(hashes.read(&key, value).expect("sound"));
            }
        }
        records.extend(hashes.end());
        let expected = [
            hash(b"a", &[(b"f", b"v"), (b"g", b"")], false, Some(0x0102)),
            hash(b"b", &[(b"f", b"w")], false, None),
        ];
        assert_eq!(records, expected);
    }

    #[test]
    fn parts_that_do_not_belong_together_are_refused() {
        let head = |expires: &[u8]| [expires, &1_u32.to_le_bytes()[..], b"t", b"key"].concat();
        let read = |parts: &[(&[u8], &[u8])]| {
            let mut reader = HashReader::default();
            parts.iter().try_for_each(|(key, value)| reader.read(key, value.to_vec()).map(drop))
        };
        let (first, second) = (b"\0\0\0\0\0\0\0\x01\0", b"\0\0\0\0\0\0\0\x01\x01f");
        assert_eq!(read(&[(first, &head(b"\0")), (second, b"v")]), Ok(()));
        assert_eq!(read(&[(second, b"v")]), Err("a field of no hash"));
        let other = b"\0\0\0\0\0\0\0\x02\x01f";
        assert_eq!(read(&[(first, &head(b"\0")), (other, b"v")]), Err("a field of no hash"));
        for wrong in [&head(b"\x02")[..], b"", b"\x01\0", b"\0\xff\0\0\0short"] {
            assert_eq!(read(&[(first, wrong)]), Err("a hash that does not say whose it is"), "{wrong:?}");
        }
        assert_eq!(read(&[(b"short", b"")]), Err("a part of a hash without its number"));
        for wrong in [&b"\0\0\0\0\0\0\0\x01"[..], b"\0\0\0\0\0\0\0\x01\0x", b"\0\0\0\0\0\0\0\x01\x02"] {
            assert_eq!(read(&[(wrong, b"")]), Err("a part of a hash of an unknown kind"), "{wrong:?}");
        }
    }
}

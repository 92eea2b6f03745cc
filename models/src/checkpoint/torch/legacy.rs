//! The format before torch 1.6: pickles one after another (magic number, protocol, system, object, keys of storages),
//! then the storages in the order of their keys, each a count and its numbers, always little-endian.

use super::{Found, Source, state_dict};
use crate::checkpoint::CheckpointError;
use crate::checkpoint::pickle::{Pickle, Value};
use std::collections::HashMap;
use std::path::Path;

/// What every such file begins with: 0x1950a86a20f9469cfc6c.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
const PROTOCOL: i64 = 1001;

pub(in crate::checkpoint) fn read(file: &Path, bytes: Vec<u8>, entry: Option<&str>) -> Result<Found, CheckpointError> {
    let mut source = Source::new(file, bytes.len() as u64);
    let mut at = 0;
    let mut next = |source: &Source<'_>, part: &str| -> Result<Pickle<'_>, CheckpointError> {
        let pickle = source.parse(part, &bytes[at..])?;
        at += pickle.len;
        Ok(pickle)
    };
    let magic = next(&source, "magic number")?;
    if !matches!(magic.get(magic.root()), Value::Long(number) if **number == MAGIC) {
        return Err(source.bad("magic number", "torch's", magic.describe(magic.root())));
    }
    let protocol = next(&source, "protocol")?;
    if protocol.int(protocol.root()) != Some(PROTOCOL) {
        return Err(source.bad("protocol", PROTOCOL.to_string(), protocol.describe(protocol.root())));
    }
    next(&source, "system")?;
    let pickle = next(&source, "pickle")?;
    let keys = next(&source, "keys of storages")?;

    // Every storage counts, needed or not: the next one begins where it ends.
    let places: HashMap<&str, _> = state_dict::places(&pickle).into_iter().map(|p| (p.key, p)).collect();
    let mut ranges = HashMap::new();
    for key in keys.members(keys.root()).unwrap_or_default() {
        let key = keys.text(*key).unwrap_or_default();
        let part = format!("storage {key}");
        let Some(place) = places.get(key) else {
            return Err(source.bad(&part, "a storage that the pickle names", "another"));
        };
        let rest = &bytes[at..];
        let short = || source.bad(&part, format!("{} bytes", place.bytes), format!("{} to the file's end", rest.len()));
        let (count, rest) = rest.split_first_chunk().ok_or_else(short)?;
        let len = usize::try_from(place.bytes).ok().filter(|n| *n <= rest.len()).ok_or_else(short)?;
        let count = u64::from_le_bytes(*count);
        if count != place.numbers {
            return Err(source.bad(&part, format!("{} numbers", place.numbers), count.to_string()));
        }
        ranges.insert(key.to_owned(), (at + 8, at + 8 + len));
        at += 8 + len;
    }
    let views = state_dict::weights(&source, &pickle, entry)?;
    let tensors = source.tensors(views, |source, place| {
        let missing = || source.bad(&format!("storage {}", place.key), "its numbers", "nothing");
        // The file itself is the one storage; a view may not reach beyond its own part of it.
        ranges.get(place.key).map(|(from, to)| (0, *from, *to)).ok_or_else(missing)
    })?;
    let metadata = state_dict::metadata(&pickle);
    Ok(Found { tensors, metadata, storages: vec![bytes] })
}

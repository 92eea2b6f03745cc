//! The format since torch 1.6: a zip archive of `data.pkl`, `byteorder` and one entry per storage under `data/`, all
//! below one folder. Entries are stored or deflated.

use super::{Found, Source, state_dict};
use crate::checkpoint::CheckpointError;
use ::zip::read::{ArchiveOffset, Config};
use ::zip::{CompressionMethod, ZipArchive};
use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Bytes of `data.pkl`, at most; whole training states have less than one mebibyte.
const MAX_PICKLE: u64 = 64 << 20;

pub(in crate::checkpoint) fn read<R: Read + Seek>(
    file: &Path,
    mut reader: R,
    len: u64,
    entry: Option<&str>,
) -> Result<Found, CheckpointError> {
    let mut source = Source::new(file, len);
    check_end(&source, &mut reader, len)?;
    // Nothing stands before the archive; a search for its start would trust bytes of the weights.
    let config = Config { archive_offset: ArchiveOffset::Known(0) };
    let archive = ZipArchive::with_config(config, reader)
        .map_err(|e| source.bad("archive", "a whole zip archive", e.to_string()))?;
    let mut archive = Archive { zip: archive, len };
    let mut names: Vec<String> = archive.zip.file_names().filter_map(|n| Some(n.ok()?.into_owned())).collect();
    names.retain(|n| n == "data.pkl" || n.ends_with("/data.pkl"));
    names.sort_by_key(|n| (n.matches('/').count(), n.clone()));
    let Some(name) = names.first() else {
        return Err(source.bad("archive", "an entry data.pkl", "none"));
    };
    let folder = name.trim_end_matches("data.pkl");
    let bytes = archive.entry(&mut source, name, None)?;
    let pickle = source.parse(name, &bytes)?;
    let views = state_dict::weights(&source, &pickle, entry)?;

    let order = format!("{folder}byteorder");
    let big = match archive.zip.index_for_name(&order) {
        None => false,
        Some(_) => match &*archive.entry(&mut source, &order, None)? {
            b"little" => false,
            b"big" => true,
            other => return Err(source.bad(&order, "little or big", other.escape_ascii().to_string())),
        },
    };
    let (mut storages, mut numbers) = (Vec::new(), HashMap::new());
    let tensors = source.tensors(views, |source, place| {
        let number = match numbers.get(place.key) {
            Some(number) => *number,
            None => {
                let mut bytes = archive.entry(source, &format!("{folder}data/{}", place.key), Some(place.bytes))?;
                if big {
                    bytes.chunks_exact_mut(place.unit).for_each(<[u8]>::reverse);
                }
                storages.push(bytes);
                numbers.insert(place.key.to_owned(), storages.len() - 1);
                storages.len() - 1
            }
        };
        Ok((number, 0, storages.get(number).map_or(0, Vec::len)))
    })?;
    let metadata = state_dict::metadata(&pickle);
    Ok(Found { tensors, storages, metadata })
}

struct Archive<R> {
    zip: ZipArchive<R>,
    /// Bytes of the file.
    len: u64,
}

impl<R: Read + Seek> Archive<R> {
    /// The bytes of an entry, which must be `expected` where that is known.
    fn entry(
        &mut self,
        source: &mut Source<'_>,
        name: &str,
        expected: Option<u64>,
    ) -> Result<Vec<u8>, CheckpointError> {
        let file = source.file;
        let bad = |expected: String, got: String| CheckpointError::Format {
            file: file.into(),
            part: name.into(),
            expected,
            got,
        };
        let index =
            self.zip.index_for_name(name).ok_or_else(|| bad("an entry of the archive".into(), "none".into()))?;
        let broken = |e: String| bad("a whole entry".into(), e);
        let about = self.zip.by_index_raw(index).map_err(|e| broken(e.to_string()))?;
        let (size, packed, method) = (about.size(), about.compressed_size(), about.compression());
        // torch writes no checksums when it was told so, and then a zero.
        let unchecked = about.crc32() == 0;
        drop(about);
        if let Some(expected) = expected.filter(|e| *e != size) {
            return Err(bad(format!("{expected} bytes"), format!("{size}")));
        }
        // Sizes are what the archive claims: compare them with what it can hold before taking memory.
        let most = match method {
            CompressionMethod::Stored => packed,
            // No deflate stream holds more.
            CompressionMethod::Deflated => packed.saturating_mul(1032),
            other => return Err(bad("a stored or deflated entry".into(), other.to_string())),
        };
        if packed > self.len || size > most {
            return Err(bad("a size that the file can hold".into(), format!("{size} bytes out of {packed}")));
        }
        if expected.is_none() && size > MAX_PICKLE {
            return Err(bad(format!("at most {MAX_PICKLE} bytes"), format!("{size}")));
        }
        source.spend(name, size)?;
        let mut bytes = Vec::new();
        let room = usize::try_from(size).ok().filter(|n| bytes.try_reserve_exact(*n).is_ok());
        let Some(room) = room else { return Err(bad("a size that fits in memory".into(), format!("{size} bytes"))) };
        let entry = match method {
            CompressionMethod::Stored if unchecked => self.zip.by_index_raw(index),
            _ => self.zip.by_index(index),
        };
        let entry = entry.map_err(|e| broken(e.to_string()))?;
        // One byte more than there should be, so that the end, and with it the checksum, is reached.
        entry.take(size + 1).read_to_end(&mut bytes).map_err(|e| broken(e.to_string()))?;
        if bytes.len() == room { Ok(bytes) } else { Err(bad(format!("{size} bytes"), bytes.len().to_string())) }
    }
}

/// Compares what the archive says about its directory, in its last bytes, with the bytes that are there. Nothing may
/// follow, as torch and Python's zipfile write it.
fn check_end(source: &Source<'_>, reader: &mut (impl Read + Seek), len: u64) -> Result<(), CheckpointError> {
    const END: u64 = 22;
    const LOCATOR: u64 = 20;
    const END64: u64 = 56;
    let io = |e| CheckpointError::Io { file: source.file.into(), source: e };
    let bad = |got: &str| source.bad("archive", "a whole zip archive", got);
    let from = len.saturating_sub(END + LOCATOR + END64);
    reader.seek(SeekFrom::Start(from)).map_err(io)?;
    let mut tail = Vec::new();
    reader.by_ref().take(END + LOCATOR + END64).read_to_end(&mut tail).map_err(io)?;
    reader.seek(SeekFrom::Start(0)).map_err(io)?;

    let number = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
    let Some((before, end)) = tail.split_last_chunk::<22>() else { return Err(bad("a file too short for its end")) };
    if !end.starts_with(b"PK\x05\x06") || end[20..] != [0, 0] {
        return Err(bad("a file without its end (truncated?)"));
    }
    let (mut entries, mut size, mut start) = (number(&end[10..12]), number(&end[12..16]), number(&end[16..20]));
    let mut stop = len - END;
    if let Some((end64, locator)) = before.split_last_chunk::<20>()
        && locator.starts_with(b"PK\x06\x07")
    {
        let Some(end64) = end64.last_chunk::<56>().filter(|r| r.starts_with(b"PK\x06\x06")) else {
            return Err(bad("an end in several parts"));
        };
        (entries, size, start) = (number(&end64[32..40]), number(&end64[40..48]), number(&end64[48..56]));
        stop = len - END - LOCATOR - END64;
    }
    // 46: the shortest description of an entry.
    if start.checked_add(size) != Some(stop) || entries > size / 46 {
        return Err(bad(&format!("a directory of {entries} entries and {size} bytes at byte {start} of {len}")));
    }
    Ok(())
}

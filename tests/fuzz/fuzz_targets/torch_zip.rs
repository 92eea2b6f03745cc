//! Torch archives: whole ones, or, where the bytes begin otherwise, a pickle in an archive that is right (a changed byte
//! would not get past the archive's checksums).
#![no_main]

use std::io::{Cursor, Write};
use zip::CompressionMethod::Stored;
use zip::write::SimpleFileOptions;

fn archive(pickle: &[u8]) -> zip::result::ZipResult<Vec<u8>> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(Stored);
    for (name, bytes) in [("data.pkl", pickle), ("byteorder", b"little"), ("data/0", &[0; 64]), ("data/1", &[1; 256])] {
        zip.start_file(format!("archive/{name}"), options)?;
        zip.write_all(bytes)?;
    }
    Ok(zip.finish()?.into_inner())
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    match data.starts_with(b"PK") {
        true => ssm_fuzz::file(data),
        false => ssm_fuzz::file(&archive(data).expect("memory is a file that does not fail")),
    }
});

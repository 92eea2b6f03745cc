//! Files of every kind: whole, damaged, hostile.

mod damage;
mod files;
mod messages;
mod pickles;

use super::Checkpoint;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// The files that `tests/data/make.py` wrote with torch.
fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// The golden files.
fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

fn bytes(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn open(path: &Path) -> Checkpoint {
    Checkpoint::open(path).unwrap_or_else(|e| panic!("{e}"))
}

/// Why a file is refused.
fn refusal(name: &str, bytes: Vec<u8>) -> String {
    match Checkpoint::from_bytes(name, bytes) {
        Ok(_) => panic!("{name}: was read"),
        Err(e) => e.to_string(),
    }
}

/// Names, shapes and values, NaN by its bits.
type Contents = Vec<(String, Vec<usize>, Vec<u64>)>;

fn contents(file: &Checkpoint) -> Contents {
    let values = |name: &str| file.f64(name).unwrap_or_default().iter().map(|v| v.to_bits()).collect();
    file.names().map(|n| (n.to_owned(), file.shape(n).unwrap_or_default().to_vec(), values(n))).collect()
}

/// A torch archive with this pickle and these storages.
fn torch_zip(method: CompressionMethod, pickle: &[u8], storages: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(method);
    let entries = storages.iter().map(|(key, data)| (format!("data/{key}"), *data));
    for (name, data) in [("data.pkl".to_owned(), pickle)].into_iter().chain(entries) {
        zip.start_file(format!("top/{name}"), options).unwrap();
        zip.write_all(data).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// An entry of a state dict: name, class of the storage, its key and numbers, offset, sizes, strides.
struct Entry<'a> {
    name: &'a str,
    class: &'a str,
    key: &'a str,
    numbers: i64,
    offset: i64,
    size: &'a [i64],
    stride: &'a [i64],
}

/// A pickle of a state dict.
fn state_dict(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut out = b"\x80\x02}".to_vec();
    for e in entries {
        text(&mut out, e.name);
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut out, "storage");
        out.extend(format!("ctorch\n{}\n", e.class).bytes());
        text(&mut out, e.key);
        text(&mut out, "cpu");
        int(&mut out, e.numbers);
        out.extend(b"tQ");
        int(&mut out, e.offset);
        for sizes in [e.size, e.stride] {
            out.push(b'(');
            sizes.iter().for_each(|n| int(&mut out, *n));
            out.push(b't');
        }
        out.extend(b"\x89}tRs");
    }
    out.push(b'.');
    out
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.bytes());
}

fn int(out: &mut Vec<u8>, n: i64) {
    out.extend([0x8a, 8]);
    out.extend(n.to_le_bytes());
}

/// A safetensors file of one tensor with this description and these bytes.
fn safetensors(dtype: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let header = format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{}]}}}}"#, data.len());
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// A small seeded generator (xorshift64*, Vigna 2016).
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % n
    }
}

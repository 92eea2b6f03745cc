//! What a reader says when tensors do not fit: word for word.

use super::*;
use crate::checkpoint::Reader;

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn file(dtype: &str, shape: &str, data: &[u8]) -> Checkpoint {
    Checkpoint::from_bytes("w.safetensors", safetensors(dtype, shape, data)).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn tensors_that_do_not_fit() {
    let good = file("F32", "[2,3]", &floats(&[1.0; 6]));
    let why = |w: &Reader<'_>, name: &str, shape: &[usize]| w.take(name, shape).err().unwrap().to_string();
    let w = Reader::new(&good);
    assert_eq!(
        why(&w.at("layers.0."), "norm.weight", &[4]),
        "w.safetensors: missing tensor layers.0.norm.weight, expected shape [4]"
    );
    assert_eq!(why(&w, "w", &[3, 2]), "w.safetensors: tensor w: expected shape [3, 2], got [2, 3]");
    assert_eq!(w.take_optional("b", &[3]).unwrap(), None);
    assert_eq!(
        w.take_optional("w", &[6]).err().unwrap().to_string(),
        "w.safetensors: tensor w: expected shape [6], got [2, 3]"
    );
    // Nothing has been taken yet.
    assert_eq!(w.finish().err().unwrap().to_string(), "w.safetensors: expected no further tensors, got w");
    let w = Reader::new(&good);
    assert_eq!(w.take("w", &[2, 3]).unwrap(), [1.0; 6]);
    w.finish().unwrap();
}

#[test]
fn many_surplus_tensors_are_counted() {
    let shapes = (0..12).map(|i| (format!("t{i:02}"), vec![1])).chain([("__input__".to_owned(), vec![1])]);
    let file = Checkpoint::of_shapes("x", shapes);
    let w = Reader::new(&file);
    w.at("t0").take("0", &[1]).unwrap();
    assert_eq!(
        w.finish().err().unwrap().to_string(),
        "x: expected no further tensors, got t01, t02, t03, t04, t05, t06, t07, t08 and 3 more"
    );
}

#[test]
fn weights_must_be_finite_and_data_need_not() {
    for (bad, word) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        let file = file("F32", "[2,3]", &floats(&[0.0, 1.0, 2.0, 3.0, bad, bad]));
        let why = Reader::new(&file).take("w", &[2, 3]).err().unwrap().to_string();
        assert_eq!(why, format!("w.safetensors: tensor w: expected finite values, got {word} at [1, 1]"));
        assert_eq!(file.f32("w").unwrap()[3], 3.0);
        assert!(!file.f32("w").unwrap()[4].is_finite());
    }
    // Too large for f32, in which the network computes.
    let large = file("F64", "[1]", &1e300f64.to_le_bytes());
    assert!(Reader::new(&large).take("w", &[1]).is_err());
}

#[test]
fn bytes_are_asked_for_as_bytes() {
    let file = file("F32", "[1]", &floats(&[1.0]));
    assert_eq!(file.u8("w").err().unwrap().to_string(), "w.safetensors: tensor w: expected U8, got F32");
    assert_eq!(file.u8("x").err().unwrap().to_string(), "w.safetensors: missing tensor x");
    assert_eq!(
        refusal("w.safetensors", safetensors("F8_E4M3", "[4]", &[0; 4])),
        "w.safetensors: tensor w: expected numbers of 8 to 64 bits (no F4, F6, F8), got F8_E4M3"
    );
}

#[test]
fn files_that_are_something_else() {
    for (bytes, got) in [
        (&b""[..], "an empty file"),
        (b"GGUF\x03\0\0\0rest", "a file that begins with GGUF\\x03\\x00\\x00\\x00"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of git-lfs (fetch the file itself)"),
    ] {
        let expected = "safetensors, a torch zip archive or a torch pickle";
        assert_eq!(refusal("f", bytes.to_vec()), format!("f: file: expected {expected}, got {got}"));
    }
    assert_eq!(refusal("f", b"\x80\x02K\x01.".to_vec()), "f: magic number: expected torch's, got 1");
    let error = Checkpoint::open(Path::new("no/such/file.pth")).err().unwrap().to_string();
    assert!(error.starts_with("no/such/file.pth: cannot be read: "), "{error}");
    #[cfg(unix)]
    assert!(
        Checkpoint::open(Path::new("/dev/zero"))
            .err()
            .unwrap()
            .to_string()
            .ends_with("expected a regular file, got something else")
    );
    let other = torch_zip(CompressionMethod::Stored, b"\x80\x02cmodels.vim\nVim\n)\x81.", &[]);
    assert_eq!(
        refusal("f", other),
        "f: pickle: expected a dict of tensors, or one under model, state_dict, model_state_dict, got a models.vim.Vim"
    );
    let other = torch_zip(CompressionMethod::Stored, b"\x80\x02}X\x05\x00\x00\x00epochK\x03s.", &[]);
    assert!(refusal("f", other).ends_with("got no tensors under the keys epoch"));
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    zip.start_file("notes.txt", SimpleFileOptions::default().compression_method(CompressionMethod::Stored)).unwrap();
    assert_eq!(refusal("f", zip.finish().unwrap().into_inner()), "f: archive: expected an entry data.pkl, got none");
}

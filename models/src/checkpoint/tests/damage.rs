//! Damaged and hostile files: an error or the same tensors, never a panic, and no memory for bytes that are not there.

use super::*;

const SMALL: [&str; 7] = [
    "variants.safetensors",
    "variants.pth",
    "variants_deflated.pth",
    "variants_legacy.pth",
    "variants_protocol4.pth",
    "variants_nocrc.pth",
    "container.pth",
];

#[test]
fn a_truncated_file_is_refused_wherever_it_ends() {
    for name in SMALL {
        let whole = bytes(&data(name));
        for len in (0..whole.len()).step_by(3) {
            refusal(&format!("{name} cut at {len}"), whole[..len].to_vec());
        }
    }
}

#[test]
fn what_follows_a_file_is_no_part_of_it() {
    for name in ["variants.safetensors", "variants.pth", "variants_deflated.pth"] {
        refusal(name, [bytes(&data(name)), vec![0]].concat());
    }
}

/// Opens what may be broken and reads all of it.
fn survive(name: &str, bytes: Vec<u8>) -> Option<Contents> {
    let file = Checkpoint::from_bytes(name, bytes).ok()?;
    for tensor in file.names() {
        file.f32(tensor).unwrap();
        _ = file.u8(tensor);
    }
    Some(contents(&file))
}

#[test]
fn a_flipped_bit_is_an_error_or_changes_nothing_that_has_a_checksum() {
    for name in SMALL {
        let mut whole = bytes(&data(name));
        let truth = survive(name, whole.clone());
        let checked =
            ["variants.pth", "variants_deflated.pth", "variants_protocol4.pth", "container.pth"].contains(&name);
        let (mut rng, mut refused) = (Rng(7), 0);
        for _ in 0..3000 {
            let (at, bit) = (rng.below(whole.len()), 1 << rng.below(8));
            whole[at] ^= bit;
            let got = survive(name, whole.clone());
            refused += usize::from(got.is_none());
            assert!(!checked || got.is_none() || got == truth, "{name}: bit {bit} of byte {at} went unnoticed");
            whole[at] ^= bit;
        }
        assert!(refused > 100, "{name}: {refused} of 3000 refused");
    }
}

#[test]
fn overwritten_bytes_do_no_harm() {
    for name in SMALL {
        let whole = bytes(&data(name));
        let mut rng = Rng(8);
        for _ in 0..2000 {
            let mut broken = whole.clone();
            let (at, len) = (rng.below(whole.len()), 1 + rng.below(12));
            let value = [0, 0xff, 0x7f, b'(', b'.', rng.below(256) as u8][rng.below(6)];
            broken[at..(at + len).min(whole.len())].fill(value);
            survive(name, broken);
        }
    }
}

#[test]
fn pickles_of_random_opcodes_do_no_harm() {
    const OPCODES: &[u8] = b"(.012FIJKLMNPQRSTUVXabcdeghijlopqrstu})]BCG\x80\x81\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8d\x8e\x8f\x90\x91\x92\x93\x94\x95";
    let whole = state_dict(&[Entry { size: &[2], stride: &[1], ..entry() }]);
    let mut rng = Rng(9);
    for _ in 0..20_000 {
        let mut pickle = whole.clone();
        for _ in 0..1 + rng.below(6) {
            let (at, opcode) = (rng.below(pickle.len()), OPCODES[rng.below(OPCODES.len())]);
            match rng.below(3) {
                0 => pickle[at] = opcode,
                1 => pickle.insert(at, opcode),
                _ => _ = pickle.remove(at),
            }
        }
        survive("random", torch_zip(CompressionMethod::Stored, &pickle, &[("0", &[0; 8])]));
    }
}

fn entry() -> Entry<'static> {
    Entry { name: "w", class: "FloatStorage", key: "0", numbers: 2, offset: 0, size: &[2], stride: &[1] }
}

/// Why an archive with one such tensor over 8 bytes is refused.
fn refused_entry(entry: Entry<'_>) -> String {
    refusal("x", torch_zip(CompressionMethod::Stored, &state_dict(&[entry]), &[("0", &[0; 8])]))
}

#[test]
fn sizes_are_compared_with_the_bytes_that_are_there() {
    let whole = torch_zip(CompressionMethod::Deflated, &state_dict(&[entry()]), &[("0", &[0; 8])]);
    assert_eq!(survive("x", whole).unwrap()[0].1, [2]);

    let far = "x: tensor w: expected a view inside 8 bytes, got F32";
    for (size, stride, offset) in [
        (&[3][..], &[1][..], 0),
        (&[2], &[2], 0),
        (&[2], &[1], 1),
        (&[1 << 62, 1 << 62], &[0, 0], 0),
        (&[1 << 31, 1 << 31, 4], &[0, 0, 1], 0),
        (&[2], &[i64::MAX], 0),
        (&[i64::MAX], &[1], 0),
        (&[0, i64::MAX], &[1, 1], 0),
        (&[1 << 30, 1 << 30, 1 << 30, 0], &[0, 0, 0, 1], 0),
    ] {
        let why = refused_entry(Entry { size, stride, offset, ..entry() });
        assert!(why.starts_with(far), "{why}");
    }
    for (got, why) in [
        (Entry { offset: i64::MAX, ..entry() }, "got offset 9223372036854775807"),
        (Entry { offset: -1, ..entry() }, "got offset -1"),
        (Entry { size: &[-2], ..entry() }, "got sizes that are a tuple of 1"),
        (Entry { size: &[2, 1], ..entry() }, "got 2 sizes and 1 strides"),
        (Entry { numbers: -2, ..entry() }, "got a storage without key or size"),
        (Entry { numbers: 1 << 62, ..entry() }, "got a storage of 4611686018427387904 numbers"),
        (Entry { numbers: 1 << 60, ..entry() }, "top/data/0: expected 4611686018427387904 bytes, got 8"),
        (Entry { numbers: 1, ..entry() }, "top/data/0: expected 4 bytes, got 8"),
        (Entry { key: "1", ..entry() }, "top/data/1: expected an entry of the archive, got none"),
        (Entry { class: "QInt8Storage", ..entry() }, "of real, complex or whole numbers, got a QInt8Storage"),
        // One number for a tebibyte: a view may be large, but not out of all proportion.
        (
            Entry { size: &[1 << 19, 1 << 19], stride: &[0, 0], ..entry() },
            "expected no more than 64 times the file's length in all",
        ),
    ] {
        let text = refused_entry(got);
        assert!(text.contains(why), "{text}");
    }
}

#[test]
fn what_inflates_without_bound_is_refused() {
    // A gibibyte of zeros in a mebibyte would pass a check of one entry; all of a file's together must not.
    let zeros = vec![0; 8 << 20];
    let name = |i: usize| format!("{i}");
    let names: Vec<String> = (0..16).map(name).collect();
    let entries: Vec<Entry<'_>> = names
        .iter()
        .map(|key| Entry { name: key, key, numbers: 2 << 20, size: &[2 << 20], stride: &[1], ..entry() })
        .collect();
    let storages: Vec<(&str, &[u8])> = names.iter().map(|n| (n.as_str(), &zeros[..])).collect();
    let why = refusal("x", torch_zip(CompressionMethod::Deflated, &state_dict(&entries), &storages));
    assert!(why.contains("expected no more than 64 times the file's length in all"), "{why}");
}

#[test]
fn giant_headers_are_refused() {
    let whole = bytes(&data("variants.safetensors"));
    for len in [u64::MAX, 1 << 39, whole.len() as u64, 0] {
        let mut file = whole.clone();
        file[..8].copy_from_slice(&len.to_le_bytes());
        refusal("x", file);
    }
    refusal("x", safetensors("F32", "[18446744073709551615]", &[0; 8]));
    refusal("x", safetensors("F32", "[4294967296,4294967296]", &[0; 8]));
    refusal("x", safetensors("F32", "[3]", &[0; 8]));
    refusal("x", safetensors("I64", "[-1]", &[0; 8]));
    refusal("x", safetensors("F32", "[0,4294967296,4294967296]", &[]));
    refusal("x", safetensors("F32", "[0,9223372036854775807]", &[]));

    // The end of a zip archive, its 64-bit form and its own: entries, size and place of the directory.
    let long = [(22 + 20 + 24, 8), (22 + 20 + 16, 8), (22 + 20 + 8, 8)];
    for (name, fields) in [("variants.pth", long), ("variants_bare.pth", [(12, 2), (10, 4), (6, 4)])] {
        for (from_end, len) in fields {
            let mut file = bytes(&data(name));
            let at = file.len() - from_end;
            file[at..at + len].fill(0x7f);
            let why = refusal("x", file);
            assert!(why.starts_with("x: archive: expected a whole zip archive, got a directory of"), "{why}");
        }
    }

    for opcode in [&b"X"[..], b"B", b"T", b"\x8b"] {
        let pickle = [b"\x80\x02", opcode, &[0xff; 4], b"abc."].concat();
        let why = refusal("x", torch_zip(CompressionMethod::Stored, &pickle, &[]));
        assert!(
            why.contains("top/data.pkl: expected a whole pickle, got at byte 2: 4294967295 bytes are needed"),
            "{why}"
        );
    }
    for opcode in [0x8d, 0x8e, 0x96] {
        let pickle = [&[0x80, 4, opcode][..], &[0xff; 8], b"abc."].concat();
        let why = refusal("x", torch_zip(CompressionMethod::Stored, &pickle, &[]));
        assert!(why.contains("got at byte 2: 18446744073709551615 bytes are needed, 4 are left"), "{why}");
    }
    let count = bytes(&data("variants_legacy.pth"));
    let keys = count.windows(2).rposition(|w| w == b"e.").unwrap() + 2;
    let mut file = count.clone();
    file[keys..keys + 8].fill(0x7f);
    assert!(refusal("x", file).contains("numbers, got 9187201950435737471"));
}

#[test]
fn what_a_file_names_again_and_again_is_bounded() {
    let why = refused_entry(Entry { size: &[1; 65], stride: &[1; 65], ..entry() });
    assert!(why.contains("sizes that are a tuple of 65"), "{why}");
    for (opcode, what) in [(0x94, "memos"), (b'2', "values on the stack")] {
        let mut pickle = b"\x80\x02N".to_vec();
        pickle.resize((1 << 22) + 16, opcode);
        let why = refusal("x", torch_zip(CompressionMethod::Stored, &pickle, &[]));
        assert!(why.contains(what), "{why}");
    }
}

#[test]
fn metadata_are_not_written_out_without_bound() {
    let mut pickle = b"\x80\x02}".to_vec();
    let entries = state_dict(&[entry()]);
    // {"state_dict": {"w": …}, KEY: [v] * 1000}
    let mut add = |key: &str, value: &[u8], again: usize| {
        text(&mut pickle, key);
        pickle.extend(b"](");
        pickle.extend(value);
        pickle.extend(b"q\x01");
        pickle.extend(b"h\x01".repeat(again));
        pickle.extend(b"es");
    };
    let mut long = vec![];
    text(&mut long, &"x".repeat(10_000));
    let mut hidden = b"}(".to_vec();
    for i in 0..1000 {
        text(&mut hidden, &format!("__{i}"));
        hidden.push(b'N');
    }
    hidden.push(b'u');
    add("long", &long, 1000);
    // A text that is the only key of each of many dicts.
    let keys = [&long[..], b"q\x020", &b"}h\x02Ns".repeat(1000)].concat();
    add("keys", &keys, 0);
    add("hidden", &hidden, 1000);
    text(&mut pickle, "state_dict");
    pickle.extend(&entries[2..entries.len() - 1]);
    pickle.extend(b"s.");
    let file = Checkpoint::from_bytes("x", torch_zip(CompressionMethod::Stored, &pickle, &[("0", &[0; 8])])).unwrap();
    assert_eq!(file.names().collect::<Vec<_>>(), ["w"]);
    assert!(file.metadata.is_empty(), "{:?}", file.metadata.keys());
}

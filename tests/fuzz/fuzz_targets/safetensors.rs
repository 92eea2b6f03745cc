//! Files of the format safetensors: whole ones, or, where the bytes begin as JSON, a header, to which its length and as many
//! zeros as it asks for are added (a byte more in the header would make any file wrong).
#![no_main]

use serde_json::Value;

/// Bytes of data at most.
const DATA: u64 = 1 << 16;

fn whole(header: &[u8]) -> Vec<u8> {
    let tensors: Value = serde_json::from_slice(header).unwrap_or_default();
    let ends = tensors.as_object().into_iter().flatten().filter_map(|(_, t)| t.get("data_offsets")?.get(1)?.as_u64());
    let zeros = vec![0; ends.max().unwrap_or(0).min(DATA) as usize];
    [&(header.len() as u64).to_le_bytes(), header, &zeros].concat()
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    match data.first() {
        Some(b'{') => ssm_fuzz::file(&whole(data)),
        _ => ssm_fuzz::file(data),
    }
});

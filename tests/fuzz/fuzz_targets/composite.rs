//! The configuration that a composite is put together by.
#![no_main]

use ssm_models::checkpoint::Checkpoint;
use std::sync::LazyLock;

static FILES: LazyLock<Vec<Checkpoint>> = LazyLock::new(|| {
    let names = ["composite_similarity", "composite_mel_s4d"];
    names.iter().map(|n| ssm_fuzz::golden(&format!("{n}.safetensors"))).collect()
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| ssm_fuzz::configured(&FILES, data));

//! Files of the format safetensors.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ssm_fuzz::file(data));

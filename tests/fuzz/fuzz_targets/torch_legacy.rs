//! Torch files of the format before 1.6: pickles one after the other, then numbers.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ssm_fuzz::file(data));

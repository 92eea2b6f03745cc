//! Configurations (`config.json`, or the metadata of a file) of networks of every family but composites.
#![no_main]

use ssm_models::checkpoint::Checkpoint;
use std::sync::LazyLock;

static FILES: LazyLock<Vec<Checkpoint>> = LazyLock::new(|| {
    let names = [
        "vim_tiny_cfg_a",
        "vmamba_variant_no_conv",
        "mamba_lm_tiny_hf",
        "mamba2_lm_limit_hf",
        "moe_mamba_tiny",
        "s4_dplr_shared_tiny",
        "s4d_classifier_tiny",
        "bst_sh_tiny",
        "aum_fofo_tiny",
        "cleanumamba_s4_tiny",
        "attenuate_tiny",
        "spec_mamba_tiny",
        "band_mask_tiny",
    ];
    names.iter().map(|n| ssm_fuzz::golden(&format!("{n}.safetensors"))).collect()
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| ssm_fuzz::configured(&FILES, data));

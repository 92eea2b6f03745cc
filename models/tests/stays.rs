//! What saved states depend on stays from version to version: the hash that a snapshot is bound to and the layout of the
//! state. A line that changes here makes every state refused that users have saved with such a model: then it belongs
//! into CHANGELOG.md.

use sha2::{Digest, Sha256};
use ssm_models::kernels::{CpuLevel, Cx};
use ssm_models::{Options, Row, Scratch, open};
use std::path::Path;

/// Golden file, beginnings of the model's hash and of the SHA-256 over the spans' names and shapes.
const KNOWN: &[(&str, &str, &str)] = &[
    ("attenuate_tiny", "983d42fe0f11e58e", "1676d796860ae658"),
    ("aum_fobi_tiny", "856e4ce7212e20be", "e06fa78006aa3b99"),
    ("band_mask_tiny", "689a57068acc16b0", "7766c67e419c8654"),
    ("bst_mf_tiny", "2e823e2163ee78e7", "417bf70165591519"),
    ("cleanumamba_tiny", "b2aa2ffe3a96e251", "72f4ca33c53c6bfc"),
    ("composite_conv_mamba", "1d69a64ddbc3d4a8", "0a92533fd502d65e"),
    ("composite_mel_s4d", "a53221ac872c1612", "74601f7624252da8"),
    ("mamba_lm_tiny_hf", "8c9fbb4e7b3b095b", "e06fa78006aa3b99"),
    ("mamba2_lm_tiny_hf", "b2087f6aca577815", "1cd00033abbc4446"),
    ("moe_mamba_tiny", "9bc4d2531963110e", "e06fa78006aa3b99"),
    ("s4d_classifier_tiny", "20afeee72be9f5dc", "0ff94c9740201ec9"),
    ("vim_tiny_cfg_a", "c0bf7032fe9076e7", "4a4db5cba408ad6f"),
    ("vmamba_v05_cfg_a", "d89982ffba35f420", "5baa4b2becb478be"),
];

#[test]
fn saved_states_go_on_fitting() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    let mut wrong = Vec::new();
    for (name, hash, layout) in KNOWN {
        let file = golden.join(format!("{name}.safetensors"));
        let model = open(&file.display().to_string(), &Options { carry: true, ..Options::default() })
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        let spans: Vec<String> = model.layout().spans().iter().map(|s| format!("{} {:?}", s.name, s.shape)).collect();
        let digest: String =
            Sha256::digest(spans.join("\n")).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        if !model.info().hash.starts_with(hash) || hash.len() != 16 || digest != *layout {
            wrong.push(format!("    (\"{name}\", \"{}\", \"{digest}\"),", &model.info().hash[..16]));
        }
    }
    assert!(wrong.is_empty(), "these are other ones now:\n{}", wrong.join("\n"));
}

#[test]
fn a_mean_does_not_stand_still_in_an_endless_stream() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/s4d_classifier_tiny.safetensors");
    let model = open(&file.display().to_string(), &Options::default()).expect("it opens");
    let mean = model.layout().span("mean").expect("a classifier takes a mean").range();
    let mut row = Row::new(&*model, 1);
    row.x.fill(0.5);
    let (cx, mut scratch) = (Cx::at(CpuLevel::Scalar, 1), Scratch::default());
    model.forward(&cx, std::slice::from_mut(&mut row), 1, &mut scratch);
    let before = row.state.data[mean.clone()].to_vec();
    // Years later.
    row.state.steps = 1 << 40;
    row.x.fill(-3.0);
    (0..64).for_each(|_| model.forward(&cx, std::slice::from_mut(&mut row), 1, &mut scratch));
    assert_ne!(row.state.data[mean], before[..]);
}

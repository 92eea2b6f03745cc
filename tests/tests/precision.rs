//! Models whose large products run in bfloat16 or in integers of 8 bits.

use ssm_models::kernels::linear::Precision;
use ssm_models::kernels::{CpuLevel, Cx};
use ssm_models::{Model, Row, Scratch, Signal};
use ssm_tests::Rng;
use ssm_tests::fabricate::FAMILIES;

/// Output of eight steps (one frame of models of frames) of seeded input.
fn output(model: &dyn Model) -> Vec<f32> {
    let len = if matches!(model.info().input, Signal::Image { .. }) { 1 } else { 8 };
    let (mut rows, mut rng) = ([Row::new(model, len)], Rng::new(5));
    let x = rng.normals(rows[0].x.len(), 0.5);
    rows[0].x.copy_from_slice(&x);
    if let Signal::Token { vocab } = model.info().input {
        rows[0].tokens.iter_mut().for_each(|t| *t = rng.range(0, vocab - 1) as u32);
    }
    model.forward(&Cx::at(CpuLevel::best(), 1), &mut rows, len, &mut Scratch::default());
    rows[0].y.clone()
}

#[test]
fn a_lower_precision_is_near_f32_and_another_function() {
    // 8 bits of mantissa, or of each row's largest value, through a few layers.
    for (precision, most) in [(Precision::Bf16, 0.1), (Precision::Int8, 0.25)] {
        lowered(precision, most);
    }
}

fn lowered(precision: Precision, most: f32) {
    for name in ["vim", "vmamba", "mamba", "mamba2"] {
        let (_, draw) = FAMILIES.iter().find(|f| f.0 == name).expect("the family is there");
        for seed in 0..6 {
            let mut f = draw(&mut Rng::new(seed));
            let single = f.open(CpuLevel::best()).expect("opens");
            f.options.precision = precision;
            let half = match f.open(CpuLevel::best()) {
                Ok(model) => model,
                // A mixer alone runs as published.
                Err(error) => {
                    assert!(error.to_string().contains("precision"), "{name} {seed}: {error}");
                    continue;
                }
            };
            let (y, z) = (output(&*single), output(&*half));
            let size = y.iter().fold(0f32, |m, v| m.max(v.abs()));
            let off = y.iter().zip(&z).map(|(y, z)| (y - z).abs()).fold(0.0, f32::max) / size;
            assert!(off > 0.0 && off < most, "{name} {seed} in {precision}: off by {off} of the largest score");
            assert_ne!(
                single.info().hash,
                half.info().hash,
                "{name} {seed}: a state of one would be taken by the other"
            );
        }
    }
}

#[test]
fn a_family_without_bf16_says_so() {
    let (_, draw) = FAMILIES.iter().find(|f| f.0 == "s4").expect("the family is there");
    let mut f = draw(&mut Rng::new(1));
    f.options.precision = Precision::Bf16;
    let error = f.open(CpuLevel::best()).expect_err("no bf16").to_string();
    assert!(error.contains("precision") && error.contains("f32") && error.contains("bf16"), "{error}");
}

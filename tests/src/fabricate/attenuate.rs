//! aTENNuate: any depth, irregular widths and numbers of states.

use super::Fabricated;
use crate::Rng;
use serde_json::json;

/// A random aTENNuate, with the convolutions before all of its layers, before some or before none.
pub fn random(rng: &mut Rng) -> Fabricated {
    let mut f = Fabricated { config: json!({ "sample_rate": 8000 }), ..Fabricated::default() };
    let (levels, share) = (rng.range(1, 4), rng.pick(&[0, 1, 2, 2]));
    let mut channels = vec![1];
    channels.extend((0..levels).map(|_| rng.range(2, 12)));
    for i in 0..levels {
        let (c, next, r) = (channels[i], channels[i + 1], rng.range(1, 4));
        block(&mut f, rng, &format!("down_ssms.{i}.0."), c, share);
        f.weight(rng, &format!("down_ssms.{i}.1.weight"), &[c, next, r]);
        f.weight(rng, &format!("up_ssms.{i}.0.weight"), &[next, c, r]);
        block(&mut f, rng, &format!("up_ssms.{i}.1."), c, share);
    }
    for i in 0..rng.range(1, 3) {
        block(&mut f, rng, &format!("hid_ssms.{i}."), channels[levels], share);
    }
    for i in 0..rng.range(1, 2) {
        block(&mut f, rng, &format!("last_ssms.{i}."), 1, share);
    }
    f
}

fn block(f: &mut Fabricated, rng: &mut Rng, prefix: &str, c: usize, share: usize) {
    let several = c > 1;
    let pre_conv = share == 2 || share == 1 && rng.range(0, 1) == 0;
    if several && pre_conv {
        f.weight(rng, &format!("{prefix}0.weight"), &[c, 1, 3]);
        f.normal(rng, &format!("{prefix}0.bias"), &[c], 0.2);
    }
    let at = usize::from(several && pre_conv);
    let n = rng.range(1, 40);
    let log_dt = (0..n).map(|_| -3.0 * rng.uniform()).collect();
    f.values(&format!("{prefix}{at}.log_dt"), &[n], log_dt);
    f.normal(rng, &format!("{prefix}{at}.A"), &[n, 2], 2.0);
    f.weight(rng, &format!("{prefix}{at}.B"), &[n, c]);
    f.weight(rng, &format!("{prefix}{at}.C"), &[c, n]);
    if several {
        f.ones(rng, &format!("{prefix}{}.layer_norm.weight", at + 1), &[c]);
        f.normal(rng, &format!("{prefix}{}.layer_norm.bias", at + 1), &[c], 0.2);
    }
}

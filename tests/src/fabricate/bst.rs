//! Block-State Transformers: all variants and contexts, sliding or not, windows of any length.

use super::Fabricated;
use super::s4::system;
use crate::Rng;
use serde_json::json;

/// A random Block-State Transformer.
pub fn random(rng: &mut Rng) -> Fabricated {
    let mut f = Fabricated::default();
    let (vocab, d, mlp) = (rng.range(2, 30), rng.range(1, 20), rng.range(1, 24));
    let (heads, dim, layers) = (rng.range(1, 4), rng.range(1, 12), rng.range(1, 3));
    let (variant, context) = (rng.pick(&["SH", "MH", "MF"]), rng.pick(&["aligned", "prev"]));
    let window = rng.range(1, 24);
    let states = rng.range(1, window);
    let width = heads * dim;
    let with_context = context == "prev" || variant == "MF";
    f.normal(rng, "embed.weight", &[vocab, d], 1.0);
    f.ones(rng, "final_norm.scale", &[d]);
    f.weight(rng, "lm_head.weight", &[vocab, d]);
    for i in 0..layers {
        let name = |n: &str| format!("layers.{i}.{n}");
        let bst = i == 0 || rng.pick(&[true, false]);
        f.ones(rng, &name("attn_norm.scale"), &[d]);
        f.ones(rng, &name("ffn_norm.scale"), &[d]);
        for m in ["q", "k", "v"] {
            f.weight(rng, &name(&format!("attn.{m}.weight")), &[width, d]);
        }
        f.normal(rng, &name("attn.scale"), &[heads], 3.0);
        f.normal(rng, &name("attn.rel_embedding"), &[heads, 32], 0.3);
        f.weight(rng, &name("proj.weight"), &[d, if bst { 2 * width } else { width }]);
        f.weight(rng, &name("ffn.hidden0.weight"), &[mlp, d]);
        f.weight(rng, &name("ffn.output.weight"), &[d, mlp]);
        if !bst {
            continue;
        }
        for m in ["q", "k", "v"] {
            f.weight(rng, &name(&format!("cross.{m}.weight")), &[width, d]);
        }
        f.normal(rng, &name("cross.scale"), &[heads], 3.0);
        f.ones(rng, &name("cross_norm.scale"), &[d]);
        let channels = match variant {
            "SH" => 1,
            "MH" => heads,
            _ => states,
        };
        system(&mut f, rng, &name("ssm."), d, channels, 0);
        if with_context {
            f.normal(rng, &name("ctx_pos"), &[states, d], 0.3);
            f.normal(rng, &name("init_context"), &[states, d], 1.0);
        }
    }
    f.config = json!({
        "variant": variant,
        "context": context,
        "xl_cache": rng.pick(&[true, false]),
        "window": window,
        "num_states": states,
    });
    f
}

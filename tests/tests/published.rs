//! The published sizes of the sequence models: names and shapes make the published number of parameters, and the files
//! are known for what they are. Nothing of that size is allocated.

use ssm_models::checkpoint::Checkpoint;
use ssm_models::family;

type Shapes = Vec<(String, Vec<usize>)>;

/// A Mamba-1 mixer with N = 16 and K = 4.
fn mixer(shapes: &mut Shapes, prefix: &str, d: usize, e: usize) {
    let r = d.div_ceil(16);
    for (name, shape) in [
        ("in_proj.weight", vec![2 * e, d]),
        ("conv1d.weight", vec![e, 1, 4]),
        ("conv1d.bias", vec![e]),
        ("x_proj.weight", vec![r + 32, e]),
        ("dt_proj.weight", vec![e, r]),
        ("dt_proj.bias", vec![e]),
        ("A_log", vec![e, 16]),
        ("D", vec![e]),
        ("out_proj.weight", vec![d, e]),
    ] {
        shapes.push((format!("{prefix}{name}"), shape));
    }
}

#[test]
fn mamba_language_models() {
    for (d, layers, parameters) in [
        (768, 24, 129_135_360),
        (1024, 48, 371_516_416),
        (1536, 48, 793_204_224),
        (2048, 48, 1_372_178_432),
        (2560, 64, 2_768_345_600),
    ] {
        for embedding in ["backbone.embedding.weight", "backbone.embeddings.weight", "lm_head.weight"] {
            let mut shapes: Shapes =
                vec![(embedding.into(), vec![50280, d]), ("backbone.norm_f.weight".into(), vec![d])];
            for i in 0..layers {
                shapes.push((format!("backbone.layers.{i}.norm.weight"), vec![d]));
                mixer(&mut shapes, &format!("backbone.layers.{i}.mixer."), d, 2 * d);
            }
            let file = Checkpoint::of_shapes("mamba", shapes);
            assert_eq!(file.parameters(), parameters, "D {d}");
            assert_eq!(family(&file).map(|f| f.name).ok(), Some("mamba"));
        }
    }
}

/// The layers alone, as the paper counts them: 25M is 8 blocks of D = 512 with 42 experts, 542 M in all.
#[test]
fn moe_mamba() {
    let (d, vocab, experts, width) = (512, 50257, 42, 1536);
    let mut shapes: Shapes = Vec::new();
    for b in 0..8 {
        let block = format!("encoder.blocks.block_{b}.block.residual_");
        for layer in ["mamba", "feedforward"] {
            shapes.push((format!("{block}{layer}.layer.pre_norm.weight"), vec![d]));
            shapes.push((format!("{block}{layer}.layer.pre_norm.bias"), vec![d]));
        }
        mixer(&mut shapes, &format!("{block}mamba.layer.mamba."), d, 2 * d);
        let moe = format!("{block}feedforward.layer.feedforward.");
        shapes.push((format!("{moe}gating.gate"), vec![d, experts]));
        shapes.push((format!("{moe}expert_inner_function.lin1_weight"), vec![experts, d, width]));
        shapes.push((format!("{moe}expert_inner_function.lin2_weight"), vec![experts, width, d]));
    }
    assert_eq!(Checkpoint::of_shapes("layers", shapes.clone()).parameters(), 542_228_480);
    shapes.push(("embedding_layer.layers.0.weight".into(), vec![vocab, d]));
    shapes.push(("head.weight".into(), vec![vocab, d]));
    let file = Checkpoint::of_shapes("moe_mamba", shapes);
    assert_eq!(family(&file).map(|f| f.name).ok(), Some("moe_mamba"));
}

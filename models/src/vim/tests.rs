//! The position embedding at other grids.

use super::{Class, Config, PosRule, fit_pos_embed};
use crate::checkpoint::Checkpoint;
use crate::families::Options;
use crate::trunk::Pool;
use serde_json::json;

#[test]
fn upstream_keeps_the_first_rows_of_two_class_tokens() {
    let config = Config {
        embed_dim: 1,
        depth: 1,
        channels: 3,
        patch_size: 4,
        stride: 4,
        trained: (2, 2),
        image: (16, 16),
        class: Class::Double,
        pool: Pool::Mean,
        if_divide_out: true,
        norm_epsilon: 1e-5,
        num_classes: 2,
    };
    // Patches of one value stay what they are: what is 100 or -100 was kept.
    let upstream = fit_pos_embed(&[100.0, -100.0, 1.0, 1.0, 1.0, 1.0], &config, PosRule::Upstream).expect("square");
    assert_eq!((upstream[0], upstream[1], upstream.len()), (100.0, -100.0, 18));
    assert!(upstream[2..].iter().all(|v| (v - 1.0).abs() < 1e-6), "{upstream:?}");
    let aware = fit_pos_embed(&[100.0, 1.0, 1.0, 1.0, 1.0, -100.0], &config, PosRule::MiddleAware).expect("any");
    assert_eq!((aware[0], aware[17]), (100.0, -100.0));
    assert!(aware[1..17].iter().all(|v| (v - 1.0).abs() < 1e-6), "{aware:?}");
}

#[test]
fn an_embedding_of_whole_strides_fits_half_ones() {
    let shapes = [
        ("patch_embed.proj.weight", vec![8, 3, 16, 16]),
        ("cls_token", vec![1, 1, 8]),
        ("pos_embed", vec![1, 17, 8]),
        ("head.weight", vec![5, 8]),
    ];
    let file = Checkpoint::of_shapes("x", shapes.map(|(n, s)| (n.to_owned(), s)));
    let read = |config| Config::read(&file, &Options { config: Some(config), ..Options::default() });
    let c = read(json!({ "source_img_size": 64, "model": { "img_size": 64, "stride": 8 } })).expect("4 x 4 to 7 x 7");
    assert_eq!((c.trained, c.grid(c.image), c.tokens()), ((4, 4), (7, 7), 50));
    // Without the word that it was trained elsewhere it is a mistake.
    let error =
        read(json!({ "model": { "img_size": 64, "stride": 8 } })).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(error.contains("pos_embed") && error.contains("50 rows") && error.contains("17 rows"), "{error}");
}

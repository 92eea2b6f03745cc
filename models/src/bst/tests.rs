use super::attention::Position;
use super::config::{BUCKETS, Context, Variant, bucket};
use super::*;

#[test]
fn golden_files_pass() {
    crate::golden::pass("bst");
}

#[test]
fn buckets_are_those_of_the_table() {
    let all: Vec<usize> = (0..200).map(bucket).collect();
    assert!(all.is_sorted() && all[..16].iter().enumerate().all(|(n, b)| n == *b));
    for (i, first) in BUCKETS.iter().enumerate() {
        assert_eq!((bucket(*first), bucket(first - 1)), (16 + i, 15 + i));
    }
    assert_eq!(all[199], 31);
}

/// Tensors of a model of three layers, the middle one BST, without any order in its values.
fn tensors(variant: Variant, context: Context) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let (v, d, heads, dim, mlp, n, states) = (11, 6, 2, 4, 7, 3, 3);
    let width = heads * dim;
    let channels = match variant {
        Variant::Sh => 1,
        Variant::Mh => heads,
        Variant::Mf => states,
    };
    let mut shapes: Vec<(String, Vec<usize>)> = vec![
        ("embed.weight".into(), vec![v, d]),
        ("final_norm.scale".into(), vec![d]),
        ("lm_head.weight".into(), vec![v, d]),
    ];
    for i in 0..3 {
        let mut add = |name: &str, shape: &[usize]| shapes.push((format!("layers.{i}.{name}"), shape.to_vec()));
        ["q", "k", "v"].iter().for_each(|m| add(&format!("attn.{m}.weight"), &[width, d]));
        ["attn_norm.scale", "ffn_norm.scale"].iter().for_each(|m| add(m, &[d]));
        add("attn.scale", &[heads]);
        add("attn.rel_embedding", &[heads, 32]);
        add("proj.weight", &[d, if i == 1 { 2 * width } else { width }]);
        add("ffn.hidden0.weight", &[mlp, d]);
        add("ffn.output.weight", &[d, mlp]);
        if i == 1 {
            ["q", "k", "v"].iter().for_each(|m| add(&format!("cross.{m}.weight"), &[width, d]));
            add("cross_norm.scale", &[d]);
            add("cross.scale", &[heads]);
            add("ssm.D", &[channels, d]);
            add("ssm.kernel.inv_dt", &[d, 1]);
            add("ssm.kernel.A_real", &[d, n]);
            add("ssm.kernel.A_imag", &[d, n]);
            add("ssm.kernel.B", &[1, d, n, 2]);
            add("ssm.kernel.C", &[channels, d, n, 2]);
            if context == Context::Prev || variant == Variant::Mf {
                add("ctx_pos", &[states, d]);
                add("init_context", &[states, d]);
            }
        }
    }
    let value = |i: usize, k: usize| ((i * 31 + k * 7) as f32 * 0.61).sin();
    let fill = |(i, (name, shape)): (usize, (String, Vec<usize>))| {
        let values = (0..shape.iter().product()).map(|k| value(i, k)).collect();
        (name, shape, values)
    };
    shapes.into_iter().enumerate().map(fill).collect()
}

fn open(variant: Variant, context: Context, xl_cache: bool) -> Bst {
    let name = format!("{variant:?}").to_uppercase();
    let context = if context == Context::Prev { "prev" } else { "aligned" };
    let said = serde_json::json!({ "variant": name, "context": context, "xl_cache": xl_cache, "window": 5 });
    let file = crate::s4_core::tests::file(&tensors(
        variant,
        if context == "prev" { Context::Prev } else { Context::Aligned },
    ));
    Bst::load(&file, &Options { config: Some(said), ..Options::default() }).unwrap()
}

fn every() -> Vec<Bst> {
    let variants = [Variant::Sh, Variant::Mh, Variant::Mf];
    let contexts = [Context::Aligned, Context::Prev];
    let all = variants.iter().flat_map(|v| contexts.iter().map(move |c| (*v, *c)));
    all.flat_map(|(v, c)| [open(v, c, false), open(v, c, true)]).collect()
}

fn run(model: &Bst, row: Row, ids: &[u32], cut: usize) -> (Row, Vec<f32>) {
    let (cx, mut scratch) = (Cx::new(1).unwrap(), Scratch::default());
    let (mut rows, mut y) = ([row], Vec::new());
    for part in ids.chunks(cut) {
        rows[0].tokens[..part.len()].copy_from_slice(part);
        model.forward(&cx, &mut rows, part.len(), &mut scratch);
        model.forward(&cx, &mut rows, 0, &mut scratch);
        y.extend_from_slice(&rows[0].y[..part.len() * 11]);
    }
    let [row] = rows;
    (row, y)
}

#[test]
fn any_cut_gives_the_same_bits() {
    let ids: Vec<u32> = (0..38).map(|i| i * i % 11).collect();
    for model in every() {
        let (whole, y) = run(&model, Row::new(&model, 40), &ids, 38);
        for cut in [1, 2, 3, 5, 7, 13] {
            let (row, z) = run(&model, Row::new(&model, 40), &ids, cut);
            assert_eq!(y, z, "{} cut {cut}", model.info.sizes);
            assert_eq!(*row.state.data, *whole.state.data, "{} cut {cut}: state", model.info.sizes);
        }
    }
}

#[test]
fn a_gap_longer_than_the_window_forgets_what_attention_sees() {
    let ids: Vec<u32> = (0..13).map(|i| i * 3 % 11).collect();
    for model in every() {
        let (row, _) = run(&model, Row::new(&model, 40), &ids, 13);
        let position = |s: &State| Position::read(&s.data[model.core.window.clone()]);
        let mut short = row.state.clone();
        model.gap(&mut short, 5.0);
        assert_eq!(position(&short), position(&row.state));
        let mut long = row.state.clone();
        model.gap(&mut long, 5.5);
        assert_eq!((position(&long).step, position(&long).filled), (0, 0));
        assert!(model.upstream_state(&long, "layer0.k").is_some_and(|k| k.1.is_empty()));
        // After a very long one nothing is left of the stream but the context vectors of MF and prev.
        let mut end = row.state.clone();
        model.gap(&mut end, 1e9);
        let (_, y) = run(&model, Row { state: end, ..Row::new(&model, 40) }, &ids, 13);
        let (_, fresh) = run(&model, Row::new(&model, 40), &ids, 13);
        if model.core.config.context == Context::Aligned {
            assert_eq!(y, fresh, "{}", model.info.sizes);
        } else {
            assert_ne!(y, fresh, "{}", model.info.sizes);
        }
    }
}

#[test]
fn a_rate_reaches_the_state_space_model() {
    let ids: Vec<u32> = (0..13).map(|i| i * 3 % 11).collect();
    for model in every() {
        let (_, y) = run(&model, Row::new(&model, 40), &ids, 13);
        let (_, z) = run(&model, Row { rate: 2.0, ..Row::new(&model, 40) }, &ids, 13);
        assert_ne!(y, z, "{}", model.info.sizes);
    }
}

#[test]
fn the_variant_is_read_off_the_tensors() {
    for (variant, context) in [
        (Variant::Sh, Context::Aligned),
        (Variant::Mh, Context::Aligned),
        (Variant::Sh, Context::Prev),
        (Variant::Mh, Context::Prev),
        (Variant::Mf, Context::Prev),
    ] {
        let model = Bst::load(&crate::s4_core::tests::file(&tensors(variant, context)), &Options::default()).unwrap();
        assert_eq!((model.core.config.variant, model.core.config.context), (variant, context));
    }
    let file = crate::s4_core::tests::file(&tensors(Variant::Sh, Context::Prev));
    for (config, said) in [
        (serde_json::json!({ "window": 0 }), "window: expected 1 to 65536, got 0"),
        (serde_json::json!({ "window": 2 }), "ctx_pos: expected 2 rows at most"),
        (serde_json::json!({ "window": 65_537 }), "window: expected 1 to 65536, got 65537"),
        (serde_json::json!({ "variant": "XX" }), "variant: expected SH, MH or MF"),
        (serde_json::json!({ "variant": "MH" }), "ssm: expected 2 channels of 6 features"),
        (serde_json::json!({ "rel_buckets": 64 }), "rel_buckets: expected 32"),
    ] {
        let options = Options { config: Some(config), ..Options::default() };
        let error = Bst::load(&file, &options).err().map_or_else(String::new, |e| e.to_string());
        assert!(error.contains(said), "{error:?} should say {said:?}");
    }
}

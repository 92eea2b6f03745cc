//! What a gap does to a Mamba or Mamba-2 mixer (mamba.md, 7): the state fades by its own decay at the step size that the
//! bias alone gives, zeros move into the convolution's tail.

use ssm_models::kernels::{CpuLevel, Cx};
use ssm_models::{Engine, Row, Scratch, Signal};
use ssm_tests::Rng;
use ssm_tests::fabricate::{FAMILIES, Fabricated};

fn softplus(v: f32) -> f64 {
    f64::from(v).exp().ln_1p()
}

/// Expected factor of each value of the published state `ssm`: (E, N), or (H, P, N) with one decay per head.
fn factors(f: &Fabricated, len: usize, periods: f64) -> Vec<f64> {
    let values = |name: &str| f.tensors[name].1.clone();
    let a: Vec<f64> = values("A_log").iter().map(|v| -f64::from(*v).exp()).collect();
    let bias = if f.tensors.contains_key("dt_bias") { values("dt_bias") } else { values("dt_proj.bias") };
    let low = f.config["time_step_limit"][0].as_f64().unwrap_or(0.0);
    let (per_a, per_bias) = (len / a.len(), len / bias.len());
    (0..len).map(|i| (a[i / per_a] * softplus(bias[i / per_bias]).max(low) * periods).exp()).collect()
}

#[test]
fn the_state_fades_by_its_own_decay() {
    let mut seen = [0; 2];
    for (which, family) in ["mamba", "mamba2"].into_iter().enumerate() {
        let (_, draw) = FAMILIES.iter().find(|f| f.0 == family).expect("a family of this name");
        for seed in 0..80 {
            let mut rng = Rng::new(seed);
            let f = draw(&mut rng);
            let model = f.open(CpuLevel::best()).expect("opens");
            let Signal::Vector { dim } = model.info().input else { continue };
            seen[which] += 1;
            let len = 9;
            let mut rows = [Row::new(&*model, len)];
            rows[0].x = rng.normals(len * dim, 1.0);
            model.forward(&Cx::at(CpuLevel::best(), 1), &mut rows, len, &mut Scratch::default());
            let state = |row: &Row, part: &str| model.upstream_state(&row.state, part).expect("a mixer has this state");
            let ((_, h), (shape, tail)) = (state(&rows[0], "layer0.ssm"), state(&rows[0], "layer0.conv"));
            for periods in [0.0, 0.25, 1.0, 2.5, 7.0] {
                let mut row = Row { state: rows[0].state.clone(), ..Row::new(&*model, 1) };
                model.gap(&mut row.state, periods);
                let after = state(&row, "layer0.ssm").1;
                for ((got, h), factor) in after.iter().zip(&h).zip(factors(&f, h.len(), periods)) {
                    let want = factor * f64::from(*h);
                    assert!((f64::from(*got) - want).abs() <= 1e-5 * f64::from(h.abs()), "{family} {seed} {periods}");
                }
                // (channels, K-1), oldest first: the tail moves left and zeros come in.
                let k = shape[1];
                let zeros = (periods.ceil() as usize).min(k);
                let want: Vec<f32> =
                    tail.chunks(k.max(1)).flat_map(|c| c[zeros..].iter().copied().chain(vec![0.0; zeros])).collect();
                assert_eq!(state(&row, "layer0.conv").1, want, "{family} {seed} {periods}");
            }
        }
    }
    assert!(seen.iter().all(|n| *n > 5), "single mixers drawn: {seen:?}");
}

#[test]
fn a_gap_is_as_long_as_the_rows_rate_says() {
    let f = FAMILIES.iter().find(|f| f.0 == "mamba").expect("a family of this name").1(&mut Rng::new(5));
    let model = f.open(CpuLevel::best()).expect("opens");
    let engine = Engine::start(model, Cx::at(CpuLevel::best(), 1), 1, std::time::Duration::ZERO);
    let aged = |rate: f32, periods: f64| {
        let mut stream = engine.stream(1);
        stream.row().x.fill(0.5);
        stream.row().tokens.fill(0);
        stream.run(1).expect("it runs");
        stream.row().rate = rate;
        stream.gap(periods);
        stream.state().data.to_vec()
    };
    assert_eq!(aged(2.0, 3.0), aged(1.0, 6.0));
    assert_ne!(aged(2.0, 3.0), aged(1.0, 3.0));
}

//! Whole models, by the files that ship or that lie in `demo-out`.

use crate::{race, values};
use ssm_kernels::{CpuLevel, Cx};
use ssm_models::{Options, Row, Scratch, Signal, open};

pub fn run(cores: usize) {
    println!("\nmodels");
    let random = "demo-out/vim-tiny-random.safetensors";
    for (file, what) in [(random, "Vim-Ti 224, a frame"), ("builtin:denoise", "denoiser, a hop")] {
        let options = Options { level: CpuLevel::best(), ..Options::default() };
        let model = match open(file, &options) {
            Ok(model) => model,
            Err(error) => {
                println!("SKIP {what}: {error}");
                continue;
            }
        };
        for threads in if cores > 1 { vec![1, cores] } else { vec![1] } {
            let (cx, mut scratch) = (Cx::at(CpuLevel::best(), threads), Scratch::default());
            let mut rows = [Row::new(&*model, 1)];
            let input = values(rows[0].x.len(), 0.1);
            rows[0].x.copy_from_slice(&input);
            let seconds = race(2.0, &mut [&mut || model.forward(&cx, &mut rows, 1, &mut scratch)])[0];
            assert!(rows[0].y.iter().all(|v| v.is_finite()));
            print!("{what:<20} {threads} threads: {:>8.3} ms", seconds * 1e3);
            if let Signal::Samples { hop, rate } = model.info().input {
                print!(", {:.4} processor seconds a second of audio", seconds * f64::from(rate) / hop as f64);
            }
            println!();
        }
    }
}

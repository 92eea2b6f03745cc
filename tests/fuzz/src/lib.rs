//! What the fuzz targets share: opening what was read, and running a step of it.
#![forbid(unsafe_code)]

use ssm_models::checkpoint::Checkpoint;
use ssm_models::kernels::{CpuLevel, Cx};
use ssm_models::{Model, Options, Row, Scratch, Signal, configure, open_checkpoint};
use std::sync::LazyLock;

/// Values that a model may take and remember to be run: a larger one is right, but slow.
const LARGEST: usize = 1 << 16;

static CX: LazyLock<Cx> = LazyLock::new(|| Cx::new(1).expect("one thread"));

/// Reads a file as every element does, opens the model in it, and runs two steps if it is small. Whatever the bytes, this
/// returns.
pub fn file(bytes: &[u8]) {
    let Ok(file) = Checkpoint::from_bytes("fuzz", bytes.to_vec()) else { return };
    let names: Vec<String> = file.names().map(str::to_owned).collect();
    for name in &names {
        let shape = file.shape(name).unwrap_or_default();
        // The files that the planted bug is looked for from have names in small letters.
        assert!(!cfg!(feature = "planted") || !name.starts_with(char::is_uppercase), "planted");
        let count: usize = shape.iter().product();
        if count <= LARGEST {
            assert_eq!(file.f32(name).map_or(count, |v| v.len()), count, "{name}");
        }
    }
    open(&file);
}

/// Opens the model of a file, with the configuration in its metadata, and runs it.
pub fn open(file: &Checkpoint) {
    let options = Options { level: CpuLevel::best(), ..Options::default() };
    let Ok(options) = configure(file, &options) else { return };
    if let Ok(model) = open_checkpoint(file, &options) {
        run(&*model);
    }
}

/// Two steps and a gap of a model that is small.
pub fn run(model: &dyn Model) {
    let info = model.info();
    let large = [info.input.len(), info.output.len(), model.layout().bytes() / 4].iter().any(|n| *n > LARGEST);
    if large {
        return;
    }
    let mut row = Row::new(model, 1);
    row.x.iter_mut().enumerate().for_each(|(i, x)| *x = (i % 7) as f32 - 3.0);
    if let Signal::Token { vocab } = info.input {
        row.tokens.fill(vocab.saturating_sub(1) as u32);
    }
    let mut scratch = Scratch::default();
    for _ in 0..2 {
        model.forward(&CX, std::slice::from_mut(&mut row), 1, &mut scratch);
        model.gap(&mut row.state, 3.5);
    }
}

/// A golden file.
pub fn golden(name: &str) -> Checkpoint {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden").join(name);
    Checkpoint::open(&path).expect("a golden file")
}

/// A model under another configuration: the first byte chooses the file, the others are the JSON.
pub fn configured(files: &[Checkpoint], data: &[u8]) {
    let Some((first, text)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    assert!(!cfg!(feature = "planted") || !text.contains("[["), "planted");
    // Shares the numbers of the file.
    let mut file = files[usize::from(*first) % files.len()].part("");
    file.metadata.insert("config".into(), text.to_owned());
    open(&file);
}

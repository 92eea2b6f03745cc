use std::path::PathBuf;

/// What is wrong with a checkpoint. Every message names the file, the tensor or part of it, what was expected and what
/// is there.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The operating system refuses.
    #[error("{file}: cannot be read: {source}")]
    Io {
        /// The file.
        file: PathBuf,
        /// Its reason.
        source: std::io::Error,
    },
    /// The file, or a part of it, is not what it should be.
    #[error("{file}: {part}: expected {expected}, got {got}")]
    Format {
        /// The file.
        file: PathBuf,
        /// The part: `file`, `header`, an entry of the archive.
        part: String,
        /// What belongs there.
        expected: String,
        /// What is there.
        got: String,
    },
    /// The network needs a tensor that the file does not hold, of whatever shape.
    #[error("{file}: missing tensor {tensor}")]
    Absent {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// The network needs a tensor of a shape that the file does not hold.
    #[error("{file}: missing tensor {tensor}, expected shape {expected:?}")]
    Missing {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shape it should have.
        expected: Vec<usize>,
    },
    /// A tensor of another shape.
    #[error("{file}: tensor {tensor}: expected shape {expected:?}, got {got:?}")]
    Shape {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shape that the network has.
        expected: Vec<usize>,
        /// The shape in the file.
        got: Vec<usize>,
    },
    /// A tensor of a number type that does not serve.
    #[error("{file}: tensor {tensor}: expected {expected}, got {got}")]
    Type {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Types that would do.
        expected: String,
        /// The type in the file.
        got: String,
    },
    /// A weight that is no finite number.
    #[error("{file}: tensor {tensor}: expected finite values, got {got} at {index:?}")]
    NotFinite {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Where the first one is.
        index: Vec<usize>,
        /// NaN, inf or -inf.
        got: f32,
    },
    /// Tensors that the network has no place for.
    #[error("{file}: expected no further tensors, got {}", some(.tensors))]
    Surplus {
        /// The file.
        file: PathBuf,
        /// The tensors.
        tensors: Vec<String>,
    },
}

/// A list for a message: the first few, and how many more.
pub(super) fn some(names: &[String]) -> String {
    let shown = names.iter().take(8).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > 8 { format!("{shown} and {} more", names.len() - 8) } else { shown }
}

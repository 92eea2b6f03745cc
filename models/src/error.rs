use crate::checkpoint::CheckpointError;
use std::path::PathBuf;

/// What can go wrong between a file and a result. Every message names the thing, what was expected and what was got.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The checkpoint could not be read or does not hold what the network needs.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// No family knows these tensors.
    #[error("{path}: no known model family has these tensors (first: {first}); known: {known}")]
    UnknownFamily {
        /// The file.
        path: PathBuf,
        /// Some of the names in it.
        first: String,
        /// The families.
        known: String,
    },
    /// A builtin name that does not exist.
    #[error("model: no builtin of the name {name:?}; there are: {known}")]
    UnknownBuiltin {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// A configuration value that the network cannot follow.
    #[error("{file}: {field}: expected {expected}, got {got}")]
    Config {
        /// File or option it comes from.
        file: String,
        /// The field.
        field: String,
        /// What would do.
        expected: String,
        /// What was there.
        got: String,
    },
    /// An input of another shape than the model's.
    #[error("input: expected {expected}, got {got}")]
    Input {
        /// What the model takes.
        expected: String,
        /// What came.
        got: String,
    },
    /// A device that cannot be used.
    #[error("device: {asked}: {reason}")]
    Device {
        /// The device asked for.
        asked: String,
        /// Why not.
        reason: String,
    },
    /// A saved state that does not belong to this model.
    #[error("state: {field}: expected {expected}, got {got}")]
    Snapshot {
        /// The field that differs.
        field: String,
        /// What the model needs.
        expected: String,
        /// What the snapshot holds.
        got: String,
    },
    /// The instruction level could not be set.
    #[error(transparent)]
    Level(#[from] ssm_kernels::LevelError),
    /// The card failed, or has no room.
    #[error("card: {0}")]
    Card(#[from] ssm_kernels::cuda::CardError),
    /// The engine failed inside; the stream was reset.
    #[error("engine: a forward pass of {model} failed; the state of its streams was reset{reason}")]
    Engine {
        /// The model.
        model: String,
        /// What is known about it, behind a colon; or nothing.
        reason: String,
    },
}

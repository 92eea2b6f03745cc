//! Pixels, samples and tokens to model input.

pub mod audio;
pub mod image;

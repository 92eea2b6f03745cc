//! Pixels, samples and tokens to model input.

pub mod image;

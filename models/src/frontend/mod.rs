//! Pixels, samples and tokens to model input.

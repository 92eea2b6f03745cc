//! Launches of what lies between samples, spectra and the bands of a mask.

use super::{GRID, Launch, Ptr, TooLarge, bound, each};

/// Arguments of the kernels, as `BandArgs` in `bands.cu`. All numbers are f32.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Args {
    /// Samples that came in, (batch, len, hop).
    pub x: Ptr,
    /// The samples before them and they, (batch, kept + len · hop): frames begin every hop.
    pub signal: Ptr,
    /// Spectra of the frames, (batch · len, bins, 2).
    pub spectra: Ptr,
    /// Column of each bin's features, (3, bins), then of its masks, (2, bins), u32.
    pub place: Ptr,
    /// Mean of the features, (3, bins).
    pub mean: Ptr,
    /// What they are multiplied by, (3, bins).
    pub scale: Ptr,
    /// Features, (batch · len, 3 · bins).
    pub features: Ptr,
    /// Masks, (batch · len, 2 · bins).
    pub masks: Ptr,
    /// What each frame gives to two hops, (batch · len, 2 · hop).
    pub shares: Ptr,
    /// Samples that go out, (batch, len, hop).
    pub y: Ptr,
    /// Pool of states: the samples before the next hop that its frame begins with, (kept).
    pub tail: Ptr,
    /// Pool of states: the half of the last output that the next one completes, (hop).
    pub overlap: Ptr,
    /// Slot of each stream, u32, or none.
    pub slots: Ptr,
    /// Values between slots.
    pub state_stride: u64,
    /// Streams.
    pub batch: u32,
    /// Hops.
    pub len: u32,
    /// Samples of a hop.
    pub hop: u32,
    /// Samples of a frame before its hop.
    pub kept: u32,
    /// Bins of a spectrum.
    pub bins: u32,
    /// Added to a bin's power.
    pub floor: f32,
    /// Power by which the parts of a bin are scaled.
    pub compression: f32,
}

impl Args {
    /// Samples to `signal`; the tail moves on.
    ///
    /// # Errors
    /// More streams than there is code for.
    pub fn signal(&self) -> Result<Launch, TooLarge> {
        bound("bands", "streams", i32::MAX as usize, self.batch as usize)?;
        Ok(Launch { kernel: "bands_signal", grid: [self.batch, 1, 1], block: 256, shared: 0 })
    }

    /// Spectra to features.
    ///
    /// # Errors
    /// More values than there is code for.
    pub fn features(&self) -> Result<Launch, TooLarge> {
        each("bands_features", self.values())
    }

    /// Spectra times masks, in place.
    ///
    /// # Errors
    /// More values than there is code for.
    pub fn masks(&self) -> Result<Launch, TooLarge> {
        each("bands_masks", self.values())
    }

    /// Shares of the frames to samples; the overlap moves on.
    ///
    /// # Errors
    /// More streams than there is code for.
    pub fn overlap(&self) -> Result<Launch, TooLarge> {
        bound("bands", "streams", GRID, self.batch as usize)?;
        let grid = [self.hop.div_ceil(256), self.batch, 1];
        Ok(Launch { kernel: "bands_overlap", grid, block: 256, shared: 0 })
    }

    fn values(&self) -> u64 {
        u64::from(self.batch) * u64::from(self.len) * u64::from(self.bins)
    }
}

//! Rectangles and letters on a frame of any 8-bit format.

use super::font;
use gst_video::prelude::*;
use gst_video::{VideoColorMatrix, VideoColorRange, VideoFrameRef, VideoInfo};

/// A part of a frame, in pixels; may reach over its edges.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rect {
    pub(crate) x: usize,
    pub(crate) y: usize,
    pub(crate) width: usize,
    pub(crate) height: usize,
}

/// R, G, B.
pub(crate) type Colour = [u8; 3];

/// What one component of a format needs to be drawn: offset and step of its samples, and how it is made of R, G, B.
#[derive(Clone, Copy, Debug, Default)]
struct Component {
    plane: usize,
    offset: usize,
    step: usize,
    /// Right shifts from pixels to samples.
    sub: (u32, u32),
    /// Weights of R, G, B, and what is added.
    mix: [f32; 4],
}

/// How a format is drawn on.
#[derive(Clone, Debug)]
pub(crate) struct Brush {
    components: [Component; 4],
    count: usize,
    size: (usize, usize),
}

impl Brush {
    pub(crate) fn new(info: &VideoInfo) -> Self {
        let (format, colour) = (info.format_info(), info.colorimetry());
        let (kr, kb) = match colour.matrix() {
            VideoColorMatrix::Bt709 => (0.2126, 0.0722),
            VideoColorMatrix::Bt2020 => (0.2627, 0.0593),
            VideoColorMatrix::Smpte240m => (0.212, 0.087),
            _ => (0.299, 0.114),
        };
        let luma = [kr, 1.0 - kr - kb, kb];
        let full = format.is_rgb() || colour.range() == VideoColorRange::Range0_255;
        let (low, high, spread) = if full { (0.0, 255.0, 255.0) } else { (16.0, 235.0, 224.0) };
        let grey = luma.map(|w| w * (high - low) / 255.0);
        // (B - Y) / (2 (1 - kb)), from -0.5 to 0.5 of the spread; R likewise.
        let difference = |c: usize, k: f32| {
            std::array::from_fn(|i| (f32::from(u8::from(i == c)) - luma[i]) / (2.0 * (1.0 - k)) * spread / 255.0)
        };
        let with = |w: [f32; 3], add: f32| [w[0], w[1], w[2], add];
        let count = (info.n_components() as usize).min(4);
        let mut components = [Component::default(); 4];
        for (c, to) in components.iter_mut().enumerate().take(count) {
            let mix = match c {
                // What is drawn is seen, on frames that are to be laid over others, too.
                3 => with([0.0; 3], 255.0),
                _ if format.is_rgb() => with(std::array::from_fn(|i| f32::from(u8::from(i == c))), 0.0),
                0 => with(grey, low),
                1 => with(difference(2, kb), 128.0),
                _ => with(difference(0, kr), 128.0),
            };
            *to = Component {
                plane: format.plane()[c] as usize,
                offset: format.poffset()[c] as usize,
                step: format.pixel_stride()[c].max(1) as usize,
                sub: (format.w_sub()[c], format.h_sub()[c]),
                mix,
            };
        }
        Self { components, count, size: (info.width() as usize, info.height() as usize) }
    }

    /// Width and height of the frames.
    pub(crate) fn size(&self) -> (usize, usize) {
        self.size
    }
}

/// A frame being drawn on.
pub(crate) struct Canvas<'a> {
    brush: &'a Brush,
    strides: [usize; 4],
    planes: [&'a mut [u8]; 4],
}

impl<'a> Canvas<'a> {
    pub(crate) fn new(brush: &'a Brush, frame: &'a mut VideoFrameRef<&mut gst::BufferRef>) -> Self {
        let mut strides = [0; 4];
        for (to, stride) in strides.iter_mut().zip(frame.plane_stride()) {
            *to = usize::try_from(*stride).unwrap_or(0);
        }
        Self { brush, strides, planes: frame.planes_data_mut() }
    }

    /// Lays a colour over a part of the frame: `alpha` 255 hides what was there, 0 changes nothing.
    pub(crate) fn fill(&mut self, rect: Rect, colour: Colour, alpha: u8) {
        let (right, bottom) =
            ((rect.x + rect.width).min(self.brush.size.0), (rect.y + rect.height).min(self.brush.size.1));
        if rect.x >= right || rect.y >= bottom {
            return;
        }
        let alpha = u32::from(alpha);
        for c in &self.brush.components[..self.brush.count] {
            let [r, g, b] = colour.map(f32::from);
            let value = (c.mix[0] * r + c.mix[1] * g + c.mix[2] * b + c.mix[3]).round().clamp(0.0, 255.0) as u32;
            // A sample for several pixels belongs to the first of them.
            let samples = |from: usize, to: usize, sub: u32| {
                let round = (1 << sub) - 1;
                (from + round) >> sub..(to + round) >> sub
            };
            let columns = samples(rect.x, right, c.sub.0);
            let (add, keep) = (value * alpha + 127, 255 - alpha);
            for y in samples(rect.y, bottom, c.sub.1) {
                let at = y * self.strides[c.plane] + c.offset + columns.start * c.step;
                let Some(row) = self.planes[c.plane].get_mut(at..) else { return };
                for sample in row.iter_mut().step_by(c.step).take(columns.len()) {
                    *sample = ((u32::from(*sample) * keep + add) / 255) as u8;
                }
            }
        }
    }

    /// Writes text, its upper left corner at (x, y), a dot `dot` pixels wide; `room` letters at most.
    pub(crate) fn text(&mut self, text: &str, (x, y): (usize, usize), dot: usize, room: usize, colour: Colour) {
        for (i, c) in text.chars().take(room).enumerate() {
            let x = x + i * (font::WIDTH + 1) * dot;
            for (row, dots) in font::letter(c).iter().enumerate() {
                let mut column = 0;
                while column < font::WIDTH {
                    let run = (column..font::WIDTH).take_while(|k| dots >> (font::WIDTH - 1 - k) & 1 == 1).count();
                    if run > 0 {
                        let rect = Rect { x: x + column * dot, y: y + row * dot, width: run * dot, height: dot };
                        self.fill(rect, colour, 255);
                    }
                    column += run.max(1);
                }
            }
        }
    }
}

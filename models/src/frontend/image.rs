//! Frames to model input, as the vision models were trained to see them (vim.md 4).
//!
//! The frame is scaled until it covers 1/0.875 of the model's size in both directions (for a square model: its shorter
//! side becomes `int(size / 0.875)`), bicubic as Pillow does it, and the model's size is cut out of the middle. Then
//! `(v / 255 - mean) / std` per channel, planes R, G, B.

mod card;

pub use card::{CardPlan, CardPlane};

use crate::error::Error;
use crate::model::Pixels;
use ssm_kernels::Cx;
use ssm_kernels::resize::{Crop, Resize};

/// Longest side of a frame or of a model's input.
const MAX_SIDE: usize = 1 << 15;

/// How luma and colour differences make R, G, B: matrix and range (16 to 235 and 240, or 0 to 255).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Yuv {
    /// ITU-R BT.601, limited range.
    Bt601Limited,
    /// ITU-R BT.601, full range.
    Bt601Full,
    /// ITU-R BT.709, limited range.
    Bt709Limited,
    /// ITU-R BT.709, full range.
    Bt709Full,
    /// ITU-R BT.2020, constant luminance apart, limited range.
    Bt2020Limited,
    /// ITU-R BT.2020, full range.
    Bt2020Full,
    /// SMPTE 240M, limited range.
    Smpte240mLimited,
    /// SMPTE 240M, full range.
    Smpte240mFull,
}

impl Yuv {
    /// Luma of black, what a step of luma is worth, and what steps of U and V are worth in R, G and B.
    fn weights(self) -> (f32, f32, [(f32, f32); 3]) {
        let (kr, kb) = match self {
            Yuv::Bt601Limited | Yuv::Bt601Full => (0.299, 0.114),
            Yuv::Bt709Limited | Yuv::Bt709Full => (0.2126, 0.0722),
            Yuv::Bt2020Limited | Yuv::Bt2020Full => (0.2627, 0.0593),
            Yuv::Smpte240mLimited | Yuv::Smpte240mFull => (0.212, 0.087),
        };
        let (black, luma, chroma) = match self {
            Yuv::Bt601Limited | Yuv::Bt709Limited | Yuv::Bt2020Limited | Yuv::Smpte240mLimited => {
                (16.0, 255.0 / 219.0, 255.0 / 224.0)
            }
            Yuv::Bt601Full | Yuv::Bt709Full | Yuv::Bt2020Full | Yuv::Smpte240mFull => (0.0, 1.0, 1.0),
        };
        let kg: f32 = 1.0 - kr - kb;
        let (vr, ub) = (2.0 * (1.0 - kr) * chroma, 2.0 * (1.0 - kb) * chroma);
        let (vg, ug) = (-vr * kr / kg, -ub * kb / kg);
        (black, luma, [(0.0, vr), (ug, vg), (ub, 0.0)])
    }
}

/// How pixels lie in memory. Names as GStreamer has them: bytes in the order of the letters, `x` and alpha ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum PixelFormat {
    Rgb,
    Bgr,
    Rgbx,
    Bgrx,
    Xrgb,
    Xbgr,
    Rgba,
    Bgra,
    Argb,
    Abgr,
    Gray8,
    /// Planes Y, U, V; U and V of half the size, rounded up, their samples in the middle of two by two pixels.
    I420(Yuv),
    /// As I420, the planes Y, V, U.
    Yv12(Yuv),
    /// Planes Y and UV, otherwise as I420.
    Nv12(Yuv),
    /// Planes Y and VU, otherwise as I420.
    Nv21(Yuv),
    /// One plane of Y, U, Y, V for two pixels side by side; U and V in the middle of them.
    Yuy2(Yuv),
    /// One plane of U, Y, V, Y, otherwise as YUY2.
    Uyvy(Yuv),
}

/// A plane as samples of so many bytes, of which some are wanted. Several views may be of one plane.
struct View {
    plane: usize,
    bytes: usize,
    /// Right shifts from pixels to samples: rows, columns.
    sub: (u32, u32),
}

impl View {
    const fn of(plane: usize, bytes: usize, sub: (u32, u32)) -> Self {
        Self { plane, bytes, sub }
    }
}

/// A channel: the view that it is in, and the byte of a sample.
type Place = (usize, usize);

impl PixelFormat {
    fn views(self) -> &'static [View] {
        use PixelFormat::*;
        const HALF: (u32, u32) = (1, 1);
        match self {
            Rgb | Bgr => const { &[View::of(0, 3, (0, 0))] },
            Rgbx | Bgrx | Xrgb | Xbgr | Rgba | Bgra | Argb | Abgr => const { &[View::of(0, 4, (0, 0))] },
            Gray8 => const { &[View::of(0, 1, (0, 0))] },
            I420(_) | Yv12(_) => const { &[View::of(0, 1, (0, 0)), View::of(1, 1, HALF), View::of(2, 1, HALF)] },
            Nv12(_) | Nv21(_) => const { &[View::of(0, 1, (0, 0)), View::of(1, 2, HALF)] },
            Yuy2(_) | Uyvy(_) => const { &[View::of(0, 2, (0, 0)), View::of(0, 4, (0, 1))] },
        }
    }

    /// Planes of a frame.
    fn planes(self) -> usize {
        self.views().iter().map(|view| view.plane + 1).max().unwrap_or(0)
    }

    /// Where R, G and B are, or Y, U and V.
    fn channels(self) -> [Place; 3] {
        use PixelFormat::*;
        match self {
            Rgb | Rgbx | Rgba => [(0, 0), (0, 1), (0, 2)],
            Bgr | Bgrx | Bgra => [(0, 2), (0, 1), (0, 0)],
            Xrgb | Argb => [(0, 1), (0, 2), (0, 3)],
            Xbgr | Abgr => [(0, 3), (0, 2), (0, 1)],
            Gray8 => [(0, 0); 3],
            I420(_) => [(0, 0), (1, 0), (2, 0)],
            Yv12(_) => [(0, 0), (2, 0), (1, 0)],
            Nv12(_) => [(0, 0), (1, 0), (1, 1)],
            Nv21(_) => [(0, 0), (1, 1), (1, 0)],
            Yuy2(_) => [(0, 0), (1, 1), (1, 3)],
            Uyvy(_) => [(0, 1), (1, 0), (1, 2)],
        }
    }

    /// Whether the kernels of a card read it: each plane once.
    pub(crate) fn on_card(self) -> bool {
        self.planes() == self.views().len()
    }

    fn yuv(self) -> Option<Yuv> {
        use PixelFormat::*;
        match self {
            I420(yuv) | Yv12(yuv) | Nv12(yuv) | Nv21(yuv) | Yuy2(yuv) | Uyvy(yuv) => Some(yuv),
            _ => None,
        }
    }
}

/// One plane of a frame.
#[derive(Clone, Copy)]
pub struct Plane<'a> {
    /// Its bytes from the first row on.
    pub data: &'a [u8],
    /// Bytes from one row to the next.
    pub stride: usize,
}

/// The way from frames of one size and format to input of one size. Made once; a frame allocates nothing.
pub struct ImagePlan {
    format: PixelFormat,
    /// (rows, columns) of the input.
    to: (usize, usize),
    views: Vec<PlanePlan>,
    scratch: Vec<u8>,
    /// (v / 255 - mean) / std of every byte, per channel.
    table: [[f32; 256]; 3],
    mean: [f32; 3],
    std: [f32; 3],
}

struct PlanePlan {
    plane: usize,
    rows: usize,
    /// Bytes of a row.
    line: usize,
    resize: Resize,
    /// Its resized part.
    pixels: Vec<u8>,
}

impl PlanePlan {
    /// Bytes of the plane from its first to its last pixel.
    fn bytes(&self, got: usize, stride: usize) -> Result<usize, Error> {
        let need = (self.rows - 1).checked_mul(stride).and_then(|n| n.checked_add(self.line));
        need.filter(|need| stride >= self.line && *need <= got).ok_or_else(|| Error::Input {
            expected: format!("plane {} of {} rows of {} bytes", self.plane, self.rows, self.line),
            got: format!("{got} bytes, rows {stride} apart"),
        })
    }
}

/// Size that a frame is scaled to and the part that is cut out of it, both as (rows, columns).
///
/// A model of other than square shape is covered the same way: the direction that needs the larger scale gets
/// `int(side / 0.875)` pixels, the other follows the frame's shape, truncated.
fn cover(from: (usize, usize), to: (usize, usize), share: f64) -> ((usize, usize), Crop) {
    let side = |s: usize| (s as f64 / share) as usize;
    let want = (side(to.0), side(to.1));
    // Larger scale: want.0 / from.0 against want.1 / from.1.
    let scaled = if want.0 * from.1 >= want.1 * from.0 {
        (want.0, want.0 * from.1 / from.0)
    } else {
        (want.1 * from.0 / from.1, want.1)
    };
    // Half of the rest, rounded to even where it is not whole.
    let middle = |rest: usize| rest / 2 + usize::from(rest % 4 == 3);
    let crop = Crop { top: middle(scaled.0 - to.0), left: middle(scaled.1 - to.1), height: to.0, width: to.1 };
    (scaled, crop)
}

impl ImagePlan {
    /// Plans frames of `from` to input of `to`, both as (rows, columns).
    ///
    /// # Errors
    /// A side is 0 or larger than 32768, or the frame is so long that its scaled form would be.
    pub fn new(from: (usize, usize), format: PixelFormat, to: (usize, usize)) -> Result<Self, Error> {
        Self::with_pixels(from, format, to, &Pixels::default())
    }

    /// As [`ImagePlan::new`] for a model that was trained with another mean, deviation or crop
    /// ([`crate::Facts::pixels`]).
    ///
    /// # Errors
    /// As [`ImagePlan::new`], or the crop is none.
    pub fn with_pixels(
        from: (usize, usize),
        format: PixelFormat,
        to: (usize, usize),
        pixels: &Pixels,
    ) -> Result<Self, Error> {
        let Pixels { mean, std, crop: share } = *pixels;
        let refuse = |what: &str, (h, w): (usize, usize)| Error::Input {
            expected: format!("{what} of 1x1 to {MAX_SIDE}x{MAX_SIDE}"),
            got: format!("{w}x{h}"),
        };
        let fits = |(h, w): (usize, usize)| (1..=MAX_SIDE).contains(&h) && (1..=MAX_SIDE).contains(&w);
        for (what, size) in [("frames", from), ("model input", to)] {
            if !fits(size) {
                return Err(refuse(what, size));
            }
        }
        if !(share > 0.0 && share <= 1.0) {
            return Err(Error::Input { expected: "a crop above 0, up to 1".into(), got: share.to_string() });
        }
        let (scaled, crop) = cover(from, to, share);
        if !fits(scaled) {
            return Err(refuse("frames that scale to a size", scaled));
        }
        let plan = |view: &View| {
            let size = (from.0.div_ceil(1 << view.sub.0), from.1.div_ceil(1 << view.sub.1));
            let end = |side: usize, sub: u32| side as f64 / f64::from(1u32 << sub);
            let part = (0.0..end(from.0, view.sub.0), 0.0..end(from.1, view.sub.1));
            let resize = Resize::of_part(view.bytes, size, part, scaled, crop);
            let pixels = vec![0; resize.out_len()];
            PlanePlan { plane: view.plane, rows: size.0, line: size.1 * view.bytes, resize, pixels }
        };
        let views: Vec<PlanePlan> = format.views().iter().map(plan).collect();
        let scratch = vec![0; views.iter().map(|p| p.resize.scratch_len()).max().unwrap_or(0)];
        let table = std::array::from_fn(|c| std::array::from_fn(|v| (v as f32 / 255.0 - mean[c]) / std[c]));
        Ok(Self { format, to, views, scratch, table, mean, std })
    }

    /// (rows, columns) of the input.
    pub fn size(&self) -> (usize, usize) {
        self.to
    }

    /// Makes a frame's input: planes R, G, B of rows × columns values each.
    ///
    /// # Errors
    /// A plane is missing or too short, or `out` is of another length.
    pub fn run(&mut self, cx: &Cx, frame: &[Plane<'_>], out: &mut [f32]) -> Result<(), Error> {
        let pixels = self.to.0 * self.to.1;
        if out.len() != 3 * pixels {
            return Err(Error::Input {
                expected: format!("room for {} values", 3 * pixels),
                got: out.len().to_string(),
            });
        }
        self.resize(cx, frame)?;
        match self.format.yuv() {
            Some(yuv) => self.convert(yuv, out),
            None => {
                for ((out, table), place) in out.chunks_exact_mut(pixels).zip(&self.table).zip(self.format.channels()) {
                    out.iter_mut().zip(self.channel(place)).for_each(|(o, b)| *o = table[usize::from(*b)]);
                }
            }
        }
        Ok(())
    }

    /// The resized samples of a channel.
    fn channel(&self, (view, byte): Place) -> impl Iterator<Item = &u8> {
        self.views[view].pixels.iter().skip(byte).step_by(self.format.views()[view].bytes)
    }

    /// Fails if frames do not have so many planes.
    fn count(&self, planes: usize) -> Result<(), Error> {
        if planes != self.format.planes() {
            return Err(Error::Input {
                expected: format!("a frame of {} planes", self.format.planes()),
                got: planes.to_string(),
            });
        }
        Ok(())
    }

    /// The resized part of every plane.
    fn resize(&mut self, cx: &Cx, frame: &[Plane<'_>]) -> Result<(), Error> {
        self.count(frame.len())?;
        for plan in &mut self.views {
            let plane = frame[plan.plane];
            plan.bytes(plane.data.len(), plane.stride)?;
            plan.resize.run(cx, plane.data, plane.stride, &mut self.scratch, &mut plan.pixels);
        }
        Ok(())
    }

    /// Luma and colour differences, each resized as such, to R, G, B; not rounded in between.
    fn convert(&self, yuv: Yuv, out: &mut [f32]) {
        let (black, luma, weights) = yuv.weights();
        let [y, u, v] = self.format.channels();
        for (c, (out, (wu, wv))) in out.chunks_exact_mut(self.to.0 * self.to.1).zip(weights).enumerate() {
            let bytes = self.channel(y).zip(self.channel(u)).zip(self.channel(v));
            for (o, ((y, u), v)) in out.iter_mut().zip(bytes) {
                let value =
                    (f32::from(*y) - black) * luma + wu * (f32::from(*u) - 128.0) + wv * (f32::from(*v) - 128.0);
                *o = (value.clamp(0.0, 255.0) / 255.0 - self.mean[c]) / self.std[c];
            }
        }
    }

    /// What `run` resized of the first plane, as the golden files hold it.
    pub(crate) fn cropped(&self) -> &[u8] {
        self.views.first().map_or(&[], |p| &p.pixels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ssm_kernels::CpuLevel;

    fn cx() -> Cx {
        Cx::at(CpuLevel::best(), 2)
    }

    fn run(from: (usize, usize), format: PixelFormat, to: (usize, usize), planes: &[Plane<'_>]) -> Vec<f32> {
        let mut plan = ImagePlan::new(from, format, to).unwrap();
        let mut out = vec![f32::NAN; 3 * to.0 * to.1];
        plan.run(&cx(), planes, &mut out).unwrap();
        out
    }

    /// Waves, so that every plane has something to resize.
    fn rgb(rows: usize, columns: usize) -> Vec<[u8; 3]> {
        let wave = |x: usize, period: f32| (127.5 + 120.0 * (x as f32 / period).sin()) as u8;
        (0..rows * columns)
            .map(|i| [wave(i % columns, 9.0), wave(i / columns, 7.0), wave(i / columns + i, 13.0)])
            .collect()
    }

    #[test]
    fn sizes_as_torchvision_has_them() {
        // (frame, model) to (scaled, top, left), as (rows, columns).
        for (from, to, scaled, top, left) in [
            ((360, 480), (224, 224), (256, 341), 16, 58),
            ((61, 90), (32, 32), (36, 53), 2, 10),
            ((133, 50), (64, 64), (194, 73), 65, 4),
            ((96, 75), (224, 224), (327, 256), 52, 16),
            ((1080, 1920), (224, 224), (256, 455), 16, 116),
            ((224, 224), (224, 224), (256, 256), 16, 16),
            ((100, 100), (224, 112), (256, 256), 16, 72),
            ((100, 300), (224, 112), (256, 768), 16, 328),
            ((300, 100), (112, 224), (768, 256), 328, 16),
        ] {
            let (got, crop) = cover(from, to, 0.875);
            assert_eq!((got, crop.top, crop.left), (scaled, top, left), "{from:?} to {to:?}");
            assert_eq!((crop.height, crop.width), to);
        }
    }

    #[test]
    fn every_order_of_bytes_gives_the_same() {
        use PixelFormat::*;
        let (rows, columns, to) = (50, 67, (28, 28));
        let image = rgb(rows, columns);
        let tight: Vec<u8> = image.concat();
        let want = run((rows, columns), Rgb, to, &[Plane { data: &tight, stride: 3 * columns }]);
        assert!(want.iter().all(|v| v.is_finite()));
        let orders = [
            (Bgr, "bgr"),
            (Rgbx, "rgb-"),
            (Rgba, "rgb-"),
            (Bgrx, "bgr-"),
            (Bgra, "bgr-"),
            (Xrgb, "-rgb"),
            (Argb, "-rgb"),
            (Xbgr, "-bgr"),
            (Abgr, "-bgr"),
        ];
        for (format, order) in orders {
            let stride = order.len() * columns + 5;
            let mut data = vec![200; rows * stride];
            for (i, pixel) in image.iter().enumerate() {
                for (k, letter) in order.chars().enumerate() {
                    if let Some(c) = "rgb".find(letter) {
                        data[i / columns * stride + i % columns * order.len() + k] = pixel[c];
                    }
                }
            }
            data.truncate((rows - 1) * stride + order.len() * columns);
            assert_eq!(run((rows, columns), format, to, &[Plane { data: &data, stride }]), want, "{format:?}");
        }
        let gray: Vec<u8> = image.iter().map(|p| p[0]).collect();
        let spread: Vec<u8> = gray.iter().flat_map(|v| [*v; 3]).collect();
        assert_eq!(
            run((rows, columns), Gray8, to, &[Plane { data: &gray, stride: columns }]),
            run((rows, columns), Rgb, to, &[Plane { data: &spread, stride: 3 * columns }])
        );
    }

    /// Back from a model's input to R, G, B.
    fn colour(out: &[f32], i: usize) -> [f32; 3] {
        let pixels = out.len() / 3;
        let Pixels { mean, std, .. } = Pixels::default();
        std::array::from_fn(|c| (out[c * pixels + i] * std[c] + mean[c]) * 255.0)
    }

    #[test]
    fn a_models_own_mean_deviation_and_crop() {
        let frame: Vec<u8> = (0..6 * 6 * 3).map(|i| (i * 2) as u8).collect();
        let pixels = Pixels { mean: [0.0, 0.5, 1.0], std: [1.0, 0.25, 2.0], crop: 1.0 };
        let mut plan = ImagePlan::with_pixels((6, 6), PixelFormat::Rgb, (6, 6), &pixels).unwrap();
        let mut out = vec![0.0; 3 * 36];
        plan.run(&cx(), &[Plane { data: &frame, stride: 18 }], &mut out).unwrap();
        for (i, v) in out.iter().enumerate() {
            let (c, byte) = (i / 36, f32::from(frame[i % 36 * 3 + i / 36]));
            assert!((v - (byte / 255.0 - pixels.mean[c]) / pixels.std[c]).abs() < 1e-6, "value {i}: {v}");
        }
    }

    #[test]
    fn colours_of_each_matrix_and_range() {
        // Y, U, V of pure colours from the standards' tables, rounded to bytes.
        for (yuv, [y, u, v], want) in [
            (Yuv::Bt601Limited, [81, 90, 240], [255.0, 0.0, 0.0]),
            (Yuv::Bt601Limited, [145, 54, 34], [0.0, 255.0, 0.0]),
            (Yuv::Bt601Limited, [41, 240, 110], [0.0, 0.0, 255.0]),
            (Yuv::Bt601Full, [76, 85, 255], [254.0, 0.0, 0.0]),
            (Yuv::Bt709Limited, [63, 102, 240], [255.0, 0.0, 0.0]),
            (Yuv::Bt709Limited, [173, 42, 26], [0.0, 255.0, 0.0]),
            (Yuv::Bt709Full, [18, 255, 116], [0.0, 0.0, 255.0]),
            (Yuv::Bt2020Limited, [74, 97, 240], [255.0, 0.0, 0.0]),
            (Yuv::Bt2020Full, [15, 255, 118], [0.0, 0.0, 255.0]),
            (Yuv::Smpte240mLimited, [63, 102, 240], [255.0, 0.0, 0.0]),
            (Yuv::Bt601Limited, [235, 128, 128], [255.0; 3]),
            (Yuv::Bt709Limited, [16, 128, 128], [0.0; 3]),
            (Yuv::Bt709Full, [128, 128, 128], [128.0; 3]),
            // Below black and above white there is nothing.
            (Yuv::Bt601Limited, [0, 128, 128], [0.0; 3]),
            (Yuv::Bt601Limited, [255, 128, 128], [255.0; 3]),
        ] {
            let (luma, us, vs, uv) = (vec![y; 35], vec![u; 12], vec![v; 12], [u, v].repeat(12));
            let planes = |data: &'static [usize], parts: [&[u8]; 3]| -> Vec<f32> {
                let frame: Vec<Plane<'_>> =
                    data.iter().zip(parts).map(|(stride, data)| Plane { data, stride: *stride }).collect();
                let format = if data.len() == 3 { PixelFormat::I420(yuv) } else { PixelFormat::Nv12(yuv) };
                run((5, 7), format, (6, 6), &frame)
            };
            let (i420, nv12) = (planes(&[7, 4, 4], [&luma, &us, &vs]), planes(&[7, 8], [&luma, &uv, &[]]));
            assert_eq!(i420, nv12);
            for (got, want) in colour(&i420, 17).into_iter().zip(want) {
                assert!((got - want).abs() < 3.0, "{yuv:?}: {y} {u} {v}: {got}, not {want}");
            }
        }
    }

    #[test]
    fn resizing_planes_is_resizing_the_picture() {
        // A smooth picture with odd sides; colour differences averaged over two by two pixels.
        let (rows, columns, to) = (131, 175, (56, 56));
        let at = |r: usize, c: usize| {
            let (r, c) = (r.min(rows - 1) as f32, c.min(columns - 1) as f32);
            let wave = |x: f32| 128.0 + 50.0 * x.sin();
            [wave(c / 25.0), wave(r / 20.0), wave((r + c) / 30.0)]
        };
        let yuv = |[r, g, b]: [f32; 3]| {
            let y = 0.299 * r + 0.587 * g + 0.114 * b;
            [y, (b - y) / 1.772 + 128.0, (r - y) / 1.402 + 128.0]
        };
        let image: Vec<u8> =
            (0..rows * columns).flat_map(|i| at(i / columns, i % columns).map(|v| v.round() as u8)).collect();
        let luma: Vec<u8> = (0..rows * columns).map(|i| yuv(at(i / columns, i % columns))[0].round() as u8).collect();
        let (half_rows, half) = (rows.div_ceil(2), columns.div_ceil(2));
        let chroma = |k: usize| -> Vec<u8> {
            let mean = |i: usize| {
                let (r, c) = (2 * (i / half), 2 * (i % half));
                [(0, 0), (0, 1), (1, 0), (1, 1)].iter().map(|(y, x)| yuv(at(r + y, c + x))[k]).sum::<f32>() / 4.0
            };
            (0..half_rows * half).map(|i| mean(i).round() as u8).collect()
        };
        let (u, v) = (chroma(1), chroma(2));
        let pairs = |a: &[u8], b: &[u8]| -> Vec<u8> { a.iter().zip(b).flat_map(|(a, b)| [*a, *b]).collect() };
        let (uv, vu) = (pairs(&u, &v), pairs(&v, &u));
        // Two pixels side by side: both of luma, the means of the others.
        let packed = |order: [usize; 4]| -> Vec<u8> {
            let group = |i: usize| {
                let (r, c) = (i / half, 2 * (i % half));
                let (left, right) = (yuv(at(r, c)), yuv(at(r, c + 1)));
                let mean = |k: usize| f32::midpoint(left[k], right[k]);
                order.map(|k| [left[0], mean(1), right[0], mean(2)][k].round() as u8)
            };
            (0..rows * half).flat_map(group).collect()
        };
        let (yuyv, uyvy) = (packed([0, 1, 2, 3]), packed([1, 0, 3, 2]));
        let plane = |data, stride| Plane { data, stride };
        let (y, matrix) = (plane(&luma[..], columns), Yuv::Bt601Full);
        let want = run((rows, columns), PixelFormat::Rgb, to, &[plane(&image[..], 3 * columns)]);
        for (format, planes) in [
            (PixelFormat::I420(matrix), vec![y, plane(&u, half), plane(&v, half)]),
            (PixelFormat::Yv12(matrix), vec![y, plane(&v, half), plane(&u, half)]),
            (PixelFormat::Nv12(matrix), vec![y, plane(&uv, 2 * half)]),
            (PixelFormat::Nv21(matrix), vec![y, plane(&vu, 2 * half)]),
            (PixelFormat::Yuy2(matrix), vec![plane(&yuyv, 4 * half)]),
            (PixelFormat::Uyvy(matrix), vec![plane(&uyvy, 4 * half)]),
        ] {
            let got = run((rows, columns), format, to, &planes);
            for i in 0..to.0 * to.1 {
                for (got, want) in colour(&got, i).into_iter().zip(colour(&want, i)) {
                    assert!((got - want).abs() < 4.0, "{format:?}, pixel {i}: {got}, not {want}");
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        use PixelFormat::*;
        let new = |from, to| ImagePlan::new(from, Rgb, to).err().unwrap().to_string();
        assert_eq!(new((0, 4), (8, 8)), "input: expected frames of 1x1 to 32768x32768, got 4x0");
        assert_eq!(new((4, 4), (8, 40_000)), "input: expected model input of 1x1 to 32768x32768, got 40000x8");
        assert!(
            new((1, 32_768), (224, 224)).contains("frames that scale to a size"),
            "{}",
            new((1, 32_768), (224, 224))
        );
        let mut plan = ImagePlan::new((4, 4), I420(Yuv::Bt601Limited), (2, 2)).unwrap();
        let (data, mut out) = ([0; 16], [0.0; 12]);
        let plane = |len: usize, stride| Plane { data: &data[..len], stride };
        let mut why =
            |planes: &[Plane<'_>], n: usize| plan.run(&cx(), planes, &mut out[..n]).err().map(|e| e.to_string());
        assert_eq!(why(&[plane(16, 4), plane(4, 2), plane(4, 2)], 12), None);
        assert_eq!(why(&[plane(16, 4)], 12).unwrap(), "input: expected a frame of 3 planes, got 1");
        assert_eq!(
            why(&[plane(16, 4), plane(4, 2), plane(4, 2)], 11).unwrap(),
            "input: expected room for 12 values, got 11"
        );
        assert_eq!(
            why(&[plane(16, 4), plane(3, 2), plane(4, 2)], 12).unwrap(),
            "input: expected plane 1 of 2 rows of 2 bytes, got 3 bytes, rows 2 apart"
        );
        assert!(why(&[plane(16, 3), plane(4, 2), plane(4, 2)], 12).is_some());
        assert!(why(&[plane(16, usize::MAX), plane(4, 2), plane(4, 2)], 12).is_some());
    }
}

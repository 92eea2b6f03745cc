//! What networks share between their large products.

use super::after;
use super::pass::{Pass, Rows};
use super::weights::{At, Dense, NormAt, Weights};
use crate::error::Error;
use ssm_kernels::Act;
use ssm_kernels::conv2d::{Conv2d, Depthwise};
use ssm_kernels::cuda::{CardError, Kind, Ptr, act, activation, conv2d, linear, norm, selective_scan};
use ssm_kernels::linear::Linear;

impl Pass<'_> {
    /// `y = norm(Σ x)` of `m` rows of `d` values, of `parts` parts behind each other.
    pub(crate) fn norm(&self, x: Rows, parts: u32, w: &NormAt, y: Rows, m: u32, d: u32) -> Result<(), Error> {
        self.norm_gated(x, parts, w, None, y, m, d)
    }

    /// As [`Pass::norm`], and the result times `silu(z)`, of the kind of x.
    pub(crate) fn norm_gated(
        &self,
        x: Rows,
        parts: u32,
        w: &NormAt,
        z: Option<Rows>,
        y: Rows,
        m: u32,
        d: u32,
    ) -> Result<(), Error> {
        let args = norm::Args {
            x: x.at,
            z: z.map_or(Ptr::NONE, |z| z.at),
            z_stride: z.map_or(0, |z| z.stride),
            weight: self.at(w.weight),
            bias: self.at(w.bias),
            y: y.at,
            part_stride: u64::from(m) * u64::from(x.stride),
            x_stride: x.stride,
            y_stride: y.stride,
            x_kind: x.kind,
            y_kind: y.kind,
            parts,
            rows: m,
            d,
            layer: u32::from(w.layer),
            eps: w.eps,
            ..norm::Args::default()
        };
        self.try_launch(&args, args.launch())
    }

    /// `y = act(Σ x)` of `m` rows of `d` values, of `parts` parts behind each other; with a gate `Σ x · act(gate)`.
    pub(crate) fn gate(
        &self,
        x: Rows,
        parts: u32,
        gate: Option<Rows>,
        a: Act,
        y: Rows,
        m: u32,
        d: u32,
    ) -> Result<(), Error> {
        let args = activation::Gate {
            x: x.at,
            gate: gate.map_or(Ptr::NONE, |g| g.at),
            y: y.at,
            part_stride: u64::from(m) * u64::from(x.stride),
            x_stride: x.stride,
            gate_stride: gate.map_or(0, |g| g.stride),
            y_stride: y.stride,
            kind: x.kind,
            y_kind: y.kind,
            parts,
            rows: m,
            d,
            act: act(a),
        };
        self.try_launch(&args, args.launch())
    }

    /// The mean, or the largest, of each column over the `len` rows of every stream.
    pub(crate) fn pool(&self, x: Rows, len: u32, d: u32, max: bool, y: Rows) -> Result<(), Error> {
        let args = activation::Rows {
            x: x.at,
            y: y.at,
            x_batch: u64::from(len) * u64::from(x.stride),
            y_batch: u64::from(y.stride),
            x_stride: x.stride,
            x_kind: x.kind,
            y_kind: y.kind,
            batch: self.batch(),
            len,
            d,
            max: u32::from(max),
            ..activation::Rows::default()
        };
        self.try_launch(&args, args.pool())
    }

    /// A selective scan, in chunks where a few long sequences would leave the card idle.
    pub(crate) fn scan(&self, scan: selective_scan::Args, directions: u32) -> Result<(), Error> {
        let blocks = scan.d.div_ceil(32) * scan.batch * directions;
        let mut scan =
            selective_scan::Args { chunk: selective_scan::chunk(scan.len, blocks, self.processors()), ..scan };
        if scan.chunks() > 1 {
            scan.chunk_state = self.take(scan.chunk_state_len(directions), 1, Kind::F32).at;
            let (ends, launch) = scan.ends(directions).map_err(CardError::from)?;
            self.launch(&ends, launch)?;
            self.try_launch(&scan, scan.join(directions))?;
        }
        self.try_launch(&scan, scan.scan(directions))
    }
}

/// A dense convolution over images.
pub(crate) struct ConvNet {
    /// Columns in the order (line, column, channel), or (channel, line, column) where the image comes in planes.
    dense: Dense,
    planes: bool,
    channels: u32,
    kernel: u32,
    stride: u32,
    padding: u32,
}

impl ConvNet {
    /// A convolution of pixels, channels innermost.
    pub(crate) fn pixels(w: &mut Weights, conv: &Conv2d) -> Self {
        Self::new(w.dense(conv.weights()), false, conv.channels(), conv.geometry())
    }

    /// A convolution of planes.
    pub(crate) fn planes(w: &mut Weights, conv: &Conv2d) -> Self {
        let (kernel, ..) = conv.geometry();
        let (area, channels) = (kernel * kernel, conv.channels());
        let dense = w.dense_by(conv.weights(), |i| i % area * channels + i / area);
        Self::new(dense, true, channels, conv.geometry())
    }

    /// Patches of planes, without padding; weights (out, channels · side · side).
    pub(crate) fn patches(w: &mut Weights, proj: &Linear, channels: usize, side: usize, stride: usize) -> Self {
        Self::new(w.dense(proj), true, channels, (side, stride, 0))
    }

    fn new(dense: Dense, planes: bool, channels: usize, (kernel, stride, padding): (usize, usize, usize)) -> Self {
        let [channels, kernel, stride, padding] = [channels, kernel, stride, padding].map(|v| v as u32);
        Self { dense, planes, channels, kernel, stride, padding }
    }

    /// Channels of the result.
    pub(crate) fn out(&self) -> u32 {
        self.dense.n
    }

    /// The kind of numbers that it multiplies.
    pub(crate) fn kind(&self) -> Kind {
        self.dense.kind
    }

    /// Height and width of the result.
    pub(crate) fn out_size(&self, size: (u32, u32)) -> (u32, u32) {
        let windows = self.windows(Ptr::NONE, Kind::F32, 1, size);
        (windows.down, windows.across)
    }

    fn windows(&self, x: Ptr, kind: Kind, images: u32, (height, width): (u32, u32)) -> conv2d::Windows {
        let (batch, d) = if self.planes { (images * self.channels, 1) } else { (images, self.channels) };
        let windows = conv2d::Windows {
            x,
            x_stride: d,
            y_stride: self.kernel * self.kernel * d,
            kind,
            batch,
            height,
            width,
            d,
            kernel: self.kernel,
            stride: self.stride,
            padding: self.padding,
            ..conv2d::Windows::default()
        };
        windows.counted()
    }

    /// `y = act(conv(x))` of dense images of `size`; y has a row per window. Planes allow no activation.
    pub(crate) fn queue(
        &self,
        p: &Pass<'_>,
        x: Rows,
        images: u32,
        size: (u32, u32),
        a: Act,
        y: Rows,
    ) -> Result<(), Error> {
        p.scope(|| {
            let windows = self.windows(x.at, x.kind, images, size);
            let (many, area) = (windows.down * windows.across, windows.kernel * windows.kernel);
            let rows = p.take((windows.batch * many) as usize, windows.y_stride, x.kind);
            let windows = conv2d::Windows { y: rows.at, ..windows };
            p.try_launch(&windows, windows.launch())?;
            let m = images * many;
            if !self.planes {
                return p.linear(rows, &self.dense, a, y, m, false);
            }
            // One plane after the other: the rows of an image's plane lie together.
            for plane in 0..self.channels {
                let product = p.product(rows.skip_rows((plane * many) as usize), &self.dense, y, m);
                let product = linear::Args {
                    w: after(product.w, (plane * area) as usize, product.w_kind),
                    k: area,
                    x_batch: u64::from(self.channels * many) * u64::from(area),
                    y_batch: u64::from(many) * u64::from(y.stride),
                    batch_rows: many.max(1),
                    bias: if plane == 0 { product.bias } else { Ptr::NONE },
                    add: u32::from(plane > 0),
                    ..product
                };
                p.try_launch(&product, product.launch(p.processors()))?;
            }
            Ok(())
        })
    }
}

/// A convolution of each channel.
pub(crate) struct DepthwiseNet {
    taps: At,
    bias: At,
    kernel: u32,
}

impl DepthwiseNet {
    /// Its weights for a card.
    pub(crate) fn new(w: &mut Weights, conv: &Depthwise) -> Self {
        Self { taps: w.put(conv.taps()), bias: w.put(conv.bias()), kernel: conv.kernel() as u32 }
    }

    /// `y = act(conv(x))` of the images of all streams, `d` channels of pixels in x and y.
    pub(crate) fn queue(
        &self,
        p: &Pass<'_>,
        x: Rows,
        (height, width): (u32, u32),
        d: u32,
        a: Act,
        y: Rows,
    ) -> Result<(), Error> {
        let args = conv2d::Depthwise {
            x: x.at,
            taps: p.at(self.taps),
            bias: p.at(self.bias),
            y: y.at,
            x_stride: x.stride,
            y_stride: y.stride,
            kind: x.kind,
            batch: p.batch(),
            height,
            width,
            d,
            kernel: self.kernel,
            act: act(a),
        };
        p.try_launch(&args, args.launch())
    }
}

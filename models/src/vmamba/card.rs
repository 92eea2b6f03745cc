//! VMamba on a card: the four scans of a block are one launch, which reads the image in four orders.

use super::parts::{ConvNorm, Downsample, Mlp};
use super::ss2d::{ORDERS, OutNorm, Ss2d};
use super::{Classifier, VMamba};
use crate::card::{At, ConvNet, Dense, DepthwiseNet, Network, NormAt, Pass, Rows, Weights};
use crate::error::Error;
use ssm_kernels::Act;
use ssm_kernels::cross_scan::Mode;
use ssm_kernels::cuda::selective_scan::{self, order};
use ssm_kernels::cuda::{Kind, Ptr, activation, conv2d};
use std::ops::Range;

/// A convolution and the norm behind it.
struct ConvNormNet {
    conv: ConvNet,
    norm: Option<NormAt>,
}

impl ConvNormNet {
    fn new(w: &mut Weights, part: &ConvNorm, planes: bool) -> Self {
        let conv = if planes { ConvNet::planes(w, &part.conv) } else { ConvNet::pixels(w, &part.conv) };
        Self { conv, norm: part.norm.as_ref().map(|n| w.norm(n)) }
    }

    fn queue(&self, p: &Pass<'_>, x: Rows, size: (u32, u32), y: Rows) -> Result<(), Error> {
        let (h, w) = self.conv.out_size(size);
        let (m, c) = (p.batch() * h * w, self.conv.out());
        let Some(norm) = &self.norm else { return self.conv.queue(p, x, p.batch(), size, Act::None, y) };
        p.scope(|| {
            let plain = p.take(m as usize, c, Kind::F32);
            self.conv.queue(p, x, p.batch(), size, Act::None, plain)?;
            p.norm(plain, 1, norm, y, m, c)
        })
    }
}

enum OutNormNet {
    Layer(NormAt),
    Act(Act),
    Conv(DepthwiseNet),
    LayerConv(NormAt, DepthwiseNet),
}

struct OpNet {
    in_proj: Dense,
    conv2d: Option<DepthwiseNet>,
    x_proj: Dense,
    dt_projs: Vec<Dense>,
    dt_bias: At, // (4, Di)
    a: At,       // (4, N, Di)
    d: At,       // (4, Di)
    out_norm: OutNormNet,
    out_proj: Dense,
    act: Act,
    gate_act: Act,
    out_act: Act,
    di: u32,
    n: u32,
    r: u32,
}

struct MlpNet {
    norm2: NormAt,
    fc1: Dense,
    fc2: Dense,
    act: Act,
    gated: bool,
}

struct BlockNet {
    norm: NormAt,
    op: OpNet,
    mlp: Option<MlpNet>,
    carried: Option<Range<usize>>,
}

enum DownsampleNet {
    Merge { norm: NormAt, reduction: Dense },
    Conv(ConvNormNet),
}

struct StageNet {
    dim: u32,
    size: (u32, u32),
    mode: Mode,
    blocks: Vec<BlockNet>,
    downsample: Option<DownsampleNet>,
}

/// A VMamba's weights on a card.
pub(crate) struct VMambaNet {
    image: (u32, u32),
    channels: u32,
    stem: Option<ConvNormNet>,
    proj: ConvNormNet,
    pos_embed: Option<At>,
    stages: Vec<StageNet>,
    norm: NormAt,
    head: Option<Dense>,
}

impl Ss2d {
    fn on_card(&self, w: &mut Weights) -> Option<OpNet> {
        let out_norm = match &self.out_norm {
            OutNorm::Layer(norm) => OutNormNet::Layer(w.norm(norm)),
            OutNorm::None => OutNormNet::Act(Act::None),
            OutNorm::Sigmoid => OutNormNet::Act(Act::Sigmoid),
            OutNorm::Conv(conv) => OutNormNet::Conv(DepthwiseNet::new(w, conv)),
            OutNorm::LayerConv(norm, conv) => OutNormNet::LayerConv(w.norm(norm), DepthwiseNet::new(w, conv)),
            // No kernel for a softmax over pixels.
            OutNorm::Softmax => return None,
        };
        Some(OpNet {
            in_proj: w.dense(&self.in_proj),
            conv2d: self.conv2d.as_ref().map(|conv| DepthwiseNet::new(w, conv)),
            x_proj: w.dense(&self.x_proj),
            dt_projs: self.dt_projs.iter().map(|dt| w.dense(dt)).collect(),
            dt_bias: w.put(&self.dt_projs_bias),
            a: w.put(&self.a),
            d: w.put(&self.ds),
            out_norm,
            out_proj: w.dense(&self.out_proj),
            act: self.act,
            gate_act: self.gate_act,
            out_act: self.out_act,
            di: self.d_inner as u32,
            n: self.d_state as u32,
            r: self.dt_rank as u32,
        })
    }
}

impl Mlp {
    fn on_card(&self, w: &mut Weights) -> MlpNet {
        let (fc1, fc2) = (w.dense(&self.fc1), w.dense(&self.fc2));
        MlpNet { norm2: w.norm(&self.norm2), fc1, fc2, act: self.act, gated: self.gated }
    }
}

impl VMamba {
    /// The network for a card; `None`: a backbone of dense tasks, or a norm that no kernel computes.
    pub(crate) fn on_card(&self, w: &mut Weights) -> Option<VMambaNet> {
        let Classifier { norm, head } = self.classifier.as_ref()?;
        let stages = self.stages.iter().map(|stage| {
            let blocks = stage.blocks.iter().map(|block| {
                Some(BlockNet {
                    norm: w.norm(&block.norm),
                    op: block.op.on_card(w)?,
                    mlp: block.mlp.as_ref().map(|mlp| mlp.on_card(w)),
                    carried: block.carried.clone(),
                })
            });
            let blocks = blocks.collect::<Option<_>>()?;
            let downsample = stage.downsample.as_ref().map(|downsample| match downsample {
                Downsample::Merge { norm, reduction } => {
                    DownsampleNet::Merge { norm: w.norm(norm), reduction: w.dense(reduction) }
                }
                Downsample::Conv(conv) => DownsampleNet::Conv(ConvNormNet::new(w, conv, false)),
            });
            let size = (stage.size.0 as u32, stage.size.1 as u32);
            Some(StageNet { dim: stage.dim as u32, size, mode: stage.scans.mode(), blocks, downsample })
        });
        let stages = stages.collect::<Option<Vec<_>>>()?;
        let embed = &self.patch_embed;
        let stem = embed.stem.as_ref().map(|stem| ConvNormNet::new(w, stem, true));
        Some(VMambaNet {
            image: (self.config.image.0 as u32, self.config.image.1 as u32),
            channels: self.config.in_chans as u32,
            proj: ConvNormNet::new(w, &embed.proj, stem.is_none()),
            stem,
            pos_embed: self.pos_embed.as_ref().map(|pos| w.put(pos)),
            stages,
            norm: w.norm(norm),
            head: head.as_ref().map(|head| w.dense(head)),
        })
    }
}

impl OpNet {
    /// `x += op(normed)` over the pixels of all frames.
    fn queue(
        &self,
        p: &Pass<'_>,
        normed: Rows,
        stage: &StageNet,
        carried: Option<&Range<usize>>,
        x: Rows,
    ) -> Result<(), Error> {
        let (di, n, r, m, kind) = (self.di, self.n, self.r, p.rows(), self.in_proj.kind);
        let (rows, step, part) = (m as usize, r + 2 * n, u64::from(m) * u64::from(di));
        // [x | z] = in_proj x; u = act(conv2d(x))
        let (xz, u) = (p.take(rows, self.in_proj.n, kind), p.take(rows, di, kind));
        p.linear(normed, &self.in_proj, Act::None, xz, m, false)?;
        match &self.conv2d {
            Some(conv) => conv.queue(p, xz, stage.size, di, self.act, u)?,
            None => p.gate(xz, 1, None, self.act, u, m, di)?,
        }
        // Per order: [dt | b | c] = x_proj u, dt = dt_proj dt
        let orders = ORDERS as u32;
        let (dbc, dt) = (p.take(rows, orders * step, Kind::F32), p.take(ORDERS * rows, di, Kind::F32));
        p.linear(u, &self.x_proj, Act::None, dbc, m, false)?;
        for (k, dt_proj) in self.dt_projs.iter().enumerate() {
            p.linear(dbc.columns(k as u32 * step), dt_proj, Act::None, dt.skip_rows(k * rows), m, false)?;
        }
        // y = Σ_k scan_k(u)
        let y = p.take(ORDERS * rows, di, kind);
        let of_order = |k: usize| match (stage.mode, k) {
            (Mode::Cross2d, 1) => order::COLUMNS,
            (Mode::Cross2d, 3) => order::COLUMNS_REVERSE,
            (mode, k) if mode.is_forward(k) => order::FORWARD,
            _ => order::REVERSE,
        };
        let ends = carried.map_or(0, |at| at.len() as u32 / (n * di));
        let scan = selective_scan::Args {
            u: u.at,
            dt: dt.at,
            dt_bias: p.at(self.dt_bias),
            a: p.at(self.a),
            b: dbc.columns(r).at,
            c: dbc.columns(r + n).at,
            skip: p.at(self.d),
            y: y.at,
            scale: p.place().rates,
            state: carried.map_or(Ptr::NONE, |at| p.state(at)),
            slots: p.place().slots,
            dt_dir: part,
            bc_dir: u64::from(step),
            y_dir: part,
            state_dir: u64::from(n) * u64::from(di),
            state_stride: p.place().stride,
            u_stride: di,
            dt_stride: di,
            bc_stride: dbc.stride,
            y_stride: di,
            kind,
            batch: p.batch(),
            len: p.len(),
            d: di,
            n,
            per_group: di,
            orders: order::pack(&std::array::from_fn::<_, ORDERS, _>(of_order)),
            height: stage.size.0,
            carried: (1 << ends) - 1,
            softplus: 1,
            ..selective_scan::Args::default()
        };
        p.scan(scan, orders)?;
        // y = act(out_norm(y)) · act(z)
        let v = u;
        match &self.out_norm {
            OutNormNet::Layer(norm) => p.norm(y, orders, norm, v, m, di)?,
            OutNormNet::Act(a) => p.gate(y, orders, None, *a, v, m, di)?,
            OutNormNet::Conv(conv) => {
                p.gate(y, orders, None, Act::None, y, m, di)?;
                conv.queue(p, y, stage.size, di, Act::None, v)?;
            }
            OutNormNet::LayerConv(norm, conv) => {
                let normed = p.take(rows, di, kind);
                p.norm(y, orders, norm, normed, m, di)?;
                conv.queue(p, normed, stage.size, di, Act::None, v)?;
            }
        }
        if self.out_act != Act::None {
            p.gate(v, 1, None, self.out_act, v, m, di)?;
        }
        if self.in_proj.n > di {
            p.gate(v, 1, Some(xz.columns(di)), self.gate_act, v, m, di)?;
        }
        p.linear(v, &self.out_proj, Act::None, x, m, true)
    }
}

impl MlpNet {
    /// `x += fc2(act(fc1(norm2(x))))` over all pixels.
    fn queue(&self, p: &Pass<'_>, x: Rows) -> Result<(), Error> {
        let (m, c, hidden, kind) = (p.rows(), self.fc1.k, self.fc2.k, self.fc1.kind);
        let (normed, h) = (p.take(m as usize, c, kind), p.take(m as usize, self.fc1.n, kind));
        p.norm(x, 1, &self.norm2, normed, m, c)?;
        p.linear(normed, &self.fc1, if self.gated { Act::None } else { self.act }, h, m, false)?;
        if self.gated {
            p.gate(h, 1, Some(h.columns(hidden)), self.act, h, m, hidden)?;
        }
        p.linear(h, &self.fc2, Act::None, x, m, true)
    }
}

impl DownsampleNet {
    fn out(&self, (h, w): (u32, u32)) -> ((u32, u32), u32) {
        match self {
            Self::Merge { reduction, .. } => ((h.div_ceil(2), w.div_ceil(2)), reduction.n),
            Self::Conv(conv) => (conv.conv.out_size((h, w)), conv.conv.out()),
        }
    }

    /// The pixels of all frames, `c` channels, to those of the next stage.
    fn queue(&self, p: &Pass<'_>, x: Rows, size: (u32, u32), y: Rows) -> Result<(), Error> {
        let (norm, reduction) = match self {
            Self::Conv(conv) => return conv.queue(p, x, size, y),
            Self::Merge { norm, reduction } => (norm, reduction),
        };
        let ((h, w), wide) = (self.out(size).0, reduction.k);
        let m = p.batch() * h * w;
        let (merged, normed) = (p.take(m as usize, wide, x.kind), p.take(m as usize, wide, reduction.kind));
        let windows = conv2d::Windows {
            x: x.at,
            y: merged.at,
            x_stride: x.stride,
            y_stride: wide,
            kind: x.kind,
            batch: p.batch(),
            height: size.0,
            width: size.1,
            d: wide / 4,
            ..conv2d::Windows::default()
        };
        let windows = windows.merging();
        p.try_launch(&windows, windows.launch())?;
        p.norm(merged, 1, norm, normed, m, wide)?;
        p.linear(normed, reduction, Act::None, y, m, false)
    }
}

impl VMambaNet {
    /// The features of all frames, or their scores, from planes.
    pub(crate) fn frames(&self, p: &Pass<'_>, planes: Rows, out: Rows) -> Result<(), Error> {
        let batch = p.batch();
        // Two streams that take turns, as large as the largest stage.
        let most = self.stages.iter().map(|s| s.size.0 * s.size.1 * s.dim).max().unwrap_or(0);
        let turns = [p.take(batch as usize, most, Kind::F32), p.take(batch as usize, most, Kind::F32)];
        let of = |turn: usize, dim: u32| Rows { stride: dim, ..turns[turn % 2] };
        let mut turn = 0;
        let Some(first) = self.stages.first() else { return Ok(()) };
        p.scope(|| {
            let (x, size, c) = (of(0, first.dim), self.image, first.dim);
            match &self.stem {
                None => self.proj.queue(p, planes, size, x)?,
                Some(stem) => {
                    let (h, w) = stem.conv.out_size(size);
                    let (m, d) = (batch * h * w, stem.conv.out());
                    let half = p.take(m as usize, d, Kind::F32);
                    stem.queue(p, planes, size, half)?;
                    p.gate(half, 1, None, Act::Gelu, half, m, d)?;
                    self.proj.queue(p, half, (h, w), x)?;
                }
            }
            let Some(pos) = self.pos_embed else { return Ok(()) };
            let len = first.size.0 * first.size.1;
            let (patches, places, y) = (x.at, p.at(pos), of(1, c).at);
            let tokens =
                activation::Tokens { patches, places, y, batch, len, d: c, classes: [len; 2], ..Default::default() };
            p.try_launch(&tokens, tokens.launch())
        })?;
        turn += usize::from(self.pos_embed.is_some());
        for stage in &self.stages {
            let (x, c) = (of(turn, stage.dim), stage.dim);
            let p = &p.of_len(stage.size.0 * stage.size.1);
            for block in &stage.blocks {
                // x += op(norm(x)); x += mlp(norm2(x))
                p.scope(|| {
                    let normed = p.take(p.rows() as usize, c, block.op.in_proj.kind);
                    p.norm(x, 1, &block.norm, normed, p.rows(), c)?;
                    block.op.queue(p, normed, stage, block.carried.as_ref(), x)
                })?;
                if let Some(mlp) = &block.mlp {
                    p.scope(|| mlp.queue(p, x))?;
                }
            }
            if let Some(downsample) = &stage.downsample {
                let y = of(turn + 1, downsample.out(stage.size).1);
                p.scope(|| downsample.queue(p, x, stage.size, y))?;
                turn += 1;
            }
        }
        // features = mean over pixels of norm(x); y = head(features)
        let Some(last) = self.stages.last() else { return Ok(()) };
        let (len, c) = (last.size.0 * last.size.1, last.dim);
        p.scope(|| {
            let normed = p.take((batch * len) as usize, c, Kind::F32);
            p.norm(of(turn, c), 1, &self.norm, normed, batch * len, c)?;
            let Some(head) = &self.head else { return p.pool(normed, len, c, false, out) };
            let features = p.take(batch as usize, c, head.kind);
            p.pool(normed, len, c, false, features)?;
            p.linear(features, head, Act::None, out, batch, false)
        })
    }
}

impl Network for VMambaNet {
    fn input_len(&self) -> usize {
        (self.channels * self.image.0 * self.image.1) as usize
    }

    fn single_steps(&self) -> bool {
        true
    }

    fn queue(&self, p: &Pass<'_>) -> Result<(), Error> {
        let width = self.head.map_or(self.stages.last().map_or(0, |s| s.dim), |head| head.n);
        self.frames(p, p.input(0), p.output(width))
    }
}

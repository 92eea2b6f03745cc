use super::pass::{Pass, Rows};
use super::weights::{At, Dense, Weights};
use crate::error::Error;
use ssm_kernels::Act;
use ssm_kernels::cuda::{Kind, Ptr, act, linear, moe_route};
use ssm_kernels::moe_route::Experts;

/// A layer of experts on a card.
pub(crate) struct ExpertsNet {
    router: Dense,
    lin1: At, // (X, F or 2F, D)
    lin2: At, // (X, Dout, F)
    act: Act,
    gated: bool,
    experts: u32,
    k: u32,
    hidden: u32,
    f: u32,
    d_out: u32,
}

impl ExpertsNet {
    /// Its weights for a card.
    pub(crate) fn new(w: &mut Weights, experts: &Experts) -> Self {
        let (mut lin1, mut lin2, mut hidden) = (Vec::new(), Vec::new(), 0);
        let mut row = Vec::new();
        for (first, second) in experts.products() {
            hidden = first.n();
            for (product, all) in [(first, &mut lin1), (second, &mut lin2)] {
                row.resize(product.k(), 0.0);
                for i in 0..product.n() {
                    product.row(i, &mut row);
                    all.extend_from_slice(&row);
                }
            }
        }
        let (act, gated) = experts.act();
        Self {
            router: w.dense(experts.router()),
            lin1: w.put(&lin1),
            lin2: w.put(&lin2),
            act,
            gated,
            experts: experts.experts() as u32,
            k: experts.top_k() as u32,
            hidden: hidden as u32,
            f: experts.width() as u32,
            d_out: experts.d_out() as u32,
        }
    }

    /// `y = experts(x)` of `m` rows, or added to y.
    pub(crate) fn queue(&self, p: &Pass<'_>, x: Rows, m: u32, y: Rows, add: bool) -> Result<(), Error> {
        let (routed, d, hidden) = (m * self.k, self.router.k, self.hidden);
        let (m_rows, places) = (m as usize, routed as usize);
        let scores = p.take(m_rows, self.experts, Kind::F32);
        p.linear(x, &self.router, Act::None, scores, m, false)?;
        let numbers = |count: usize| p.take(count, 1, Kind::F32).at;
        let (inner, outputs) = (p.take(places, hidden, Kind::F32), p.take(places, self.d_out, Kind::F32));
        let route = moe_route::Args {
            scores: scores.at,
            chosen: numbers(places),
            values: numbers(places),
            counts: numbers(self.experts as usize),
            starts: numbers(self.experts as usize + 1),
            place: numbers(places),
            from: numbers(places),
            outputs: outputs.at,
            y: y.at,
            outputs_stride: self.d_out,
            y_stride: y.stride,
            outputs_kind: Kind::F32,
            y_kind: y.kind,
            rows: m,
            experts: self.experts,
            k: self.k,
            d: self.d_out,
            add: u32::from(add),
        };
        p.try_launch(&route, route.choose())?;
        p.launch(&route, route.count())?;
        p.launch(&route, route.place())?;
        // inner = W1 x of each row's experts, y = W2 act(inner)
        let first = linear::Args {
            x: x.at,
            w: p.at(self.lin1),
            y: inner.at,
            x_stride: x.stride,
            y_stride: hidden,
            w_stride: d,
            batch_rows: routed.max(1),
            x_kind: x.kind,
            m: routed,
            n: hidden,
            k: d,
            act: if self.gated { act(Act::None) } else { act(self.act) },
            starts: route.starts,
            from: route.from,
            w_expert: u64::from(hidden) * u64::from(d),
            experts: self.experts,
            ..linear::Args::default()
        };
        p.try_launch(&first, first.grouped())?;
        if self.gated {
            p.gate(inner, 1, Some(inner.columns(self.f)), self.act, inner, routed, self.f)?;
        }
        let second = linear::Args {
            x: inner.at,
            w: p.at(self.lin2),
            y: outputs.at,
            x_stride: hidden,
            y_stride: self.d_out,
            w_stride: self.f,
            x_kind: Kind::F32,
            n: self.d_out,
            k: self.f,
            act: act(Act::None),
            from: Ptr::NONE,
            w_expert: u64::from(self.d_out) * u64::from(self.f),
            ..first
        };
        p.try_launch(&second, second.grouped())?;
        p.try_launch(&route, route.combine())
    }
}

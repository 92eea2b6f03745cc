//! Mixture of experts with token choice and without capacity (Fedus et al. 2021, section 2; MoE-Mamba, section 3).
//!
//! ```text
//! p   = softmax(h G)                                   [experts], f32
//! e_1 … e_k = the k largest of p, the lower index first where two are equal
//! y   = Σ_i p[e_i] · W2[e_i]ᵀ a(W1[e_i]ᵀ h)            the p as they are, not renormalised
//! ```
//!
//! with `a(v) = act(v)`, or `a = act(Wg[e]ᵀ h) · (W1[e]ᵀ h)` for gated experts. A call's rows are grouped by expert, each
//! expert that was chosen runs one pair of products over its rows, and each row then sums its k results best first: a
//! row's result does not depend on the rows beside it. Experts that nobody chose cost nothing.

mod agree;

use crate::activation::{gate, softmax};
use crate::array::{Mat, MatMut, as_indices};
use crate::linear::{Linear, Store, linear};
use crate::{Act, CpuLevel, Cx};

/// Weights of a layer of experts.
pub struct Experts {
    router: Linear,    // (X, D)
    lin1: Vec<Linear>, // per expert (F, D), or (2F, D) with the gate's rows after lin1's
    lin2: Vec<Linear>, // per expert (Dout, F)
    act: Act,
    gated: bool,
    top_k: usize,
}

/// Weights as the published files hold them: input-major, one expert after the other.
pub struct Tensors<'a> {
    /// Number of experts X.
    pub experts: usize,
    /// Input width D.
    pub d: usize,
    /// Width F of an expert.
    pub f: usize,
    /// Output width.
    pub d_out: usize,
    /// Router, `[D, X]`.
    pub router: &'a [f32],
    /// `[X, D, F]`.
    pub lin1: &'a [f32],
    /// `[X, D, F]` of gated experts.
    pub gate: Option<&'a [f32]>,
    /// `[X, F, Dout]`.
    pub lin2: &'a [f32],
}

impl Experts {
    /// Packs the weights. `act` is applied to the gate of gated experts, else to the first product; each row goes to its
    /// `top_k` best experts.
    ///
    /// # Panics
    /// A slice has another length, or `top_k` is 0 or above the number of experts.
    pub fn pack(level: CpuLevel, t: &Tensors<'_>, act: Act, top_k: usize) -> Self {
        let (x, d, f, d_out) = (t.experts, t.d, t.f, t.d_out);
        assert!(top_k > 0 && top_k <= x, "moe_route: the best {top_k} of {x} experts");
        for (name, v, len) in [
            ("router", t.router, d * x),
            ("lin1", t.lin1, x * d * f),
            ("gate", t.gate.unwrap_or(t.lin1), x * d * f),
            ("lin2", t.lin2, x * f * d_out),
        ] {
            assert!(v.len() == len, "moe_route: {name}: expected {len} values, got {}", v.len());
        }
        let lin1 = |e: usize| match t.gate {
            None => Linear::pack_with(level, f, d, None, |o, i| t.lin1[(e * d + i) * f + o]),
            Some(gate) => Linear::pack_with(level, 2 * f, d, None, |o, i| {
                let v = if o < f { t.lin1 } else { gate };
                v[(e * d + i) * f + o % f]
            }),
        };
        Self {
            router: Linear::pack_with(level, x, d, None, |o, i| t.router[i * x + o]),
            lin1: (0..x).map(lin1).collect(),
            lin2: (0..x)
                .map(|e| Linear::pack_with(level, d_out, f, None, |o, i| t.lin2[(e * f + i) * d_out + o]))
                .collect(),
            act,
            gated: t.gate.is_some(),
            top_k,
        }
    }

    /// Number of experts.
    pub fn experts(&self) -> usize {
        self.lin1.len()
    }

    /// Experts that a row goes to.
    pub fn top_k(&self) -> usize {
        self.top_k
    }

    /// Width of an expert.
    pub fn width(&self) -> usize {
        self.lin2.first().map_or(0, Linear::k)
    }

    /// Output width.
    pub fn d_out(&self) -> usize {
        self.lin2.first().map_or(0, Linear::n)
    }

    /// The router, (X, D).
    pub fn router(&self) -> &Linear {
        &self.router
    }

    /// Of each expert its two products: (F, D), or (2F, D) with the gate's rows after the others, and (Dout, F).
    pub fn products(&self) -> impl Iterator<Item = (&Linear, &Linear)> {
        self.lin1.iter().zip(&self.lin2)
    }

    /// The activation, and whether it is applied to a gate.
    pub fn act(&self) -> (Act, bool) {
        (self.act, self.gated)
    }

    /// Values of working memory that [`moe_route`] needs for `rows` rows.
    pub fn scratch_len(&self, rows: usize) -> usize {
        let hidden = self.lin1.first().map_or(0, Linear::n);
        let routed = rows * self.top_k;
        rows * self.experts() + routed * (self.router.k() + hidden + self.d_out()) + 4 * routed + self.experts() + 1
    }
}

/// Routes the rows of `x`, (m, D), through the experts into `y`, (m, Dout), and returns who went where: the k experts of
/// each row, best first.
///
/// # Panics
/// A shape does not fit, or the working memory is shorter than [`Experts::scratch_len`].
pub fn moe_route<'s>(
    cx: &Cx,
    w: &Experts,
    x: Mat<'_>,
    scratch: &'s mut [f32],
    store: Store,
    mut y: MatMut<'_>,
) -> &'s [u32] {
    let (m, d, experts, k, d_out) = (x.rows(), x.cols(), w.experts(), w.top_k, w.d_out());
    assert!(d == w.router.k(), "moe_route: expected {} input columns, got {d}", w.router.k());
    assert!(y.rows() == m && y.cols() == d_out, "moe_route: expected output {m}x{d_out}");
    assert!(scratch.len() >= w.scratch_len(m), "moe_route: working memory of {} values", scratch.len());
    let (routed, hidden) = (m * k, w.lin1.first().map_or(0, Linear::n));
    let (chosen, rest) = scratch.split_at_mut(routed);
    let (probabilities, rest) = rest.split_at_mut(m * experts);
    let (values, rest) = rest.split_at_mut(routed);
    let (starts, rest) = rest.split_at_mut(experts + 1);
    let (place, rest) = rest.split_at_mut(routed);
    let (from, rest) = rest.split_at_mut(routed);
    let (inputs, rest) = rest.split_at_mut(routed * d);
    let (inner, rest) = rest.split_at_mut(routed * hidden);
    let outputs = &mut rest[..routed * d_out];
    let (chosen, starts, place, from) = (as_indices(chosen), as_indices(starts), as_indices(place), as_indices(from));

    linear(cx, x, &w.router, Act::None, Store::Set, MatMut::new(probabilities, m, experts));
    for ((p, chosen), values) in
        probabilities.chunks_exact_mut(experts).zip(chosen.chunks_exact_mut(k)).zip(values.chunks_exact_mut(k))
    {
        softmax(p);
        best(p, chosen, values);
    }
    // Counting sort: rows of expert e lie at starts[e] .. starts[e + 1], in the order of the rows.
    starts.fill(0);
    chosen.iter().for_each(|e| starts[*e as usize + 1] += 1);
    for e in 0..experts {
        starts[e + 1] += starts[e];
    }
    for (i, e) in chosen.iter().enumerate() {
        let at = &mut starts[*e as usize];
        place[i] = *at;
        from[*at as usize] = (i / k) as u32;
        *at += 1;
    }
    // Each start now is the next one's; walk them back.
    starts.copy_within(..experts, 1);
    starts[0] = 0;
    for (row, from) in inputs.chunks_exact_mut(d.max(1)).zip(&*from) {
        row.copy_from_slice(x.row(*from as usize));
    }
    for e in 0..experts {
        let (start, n) = (starts[e] as usize, (starts[e + 1] - starts[e]) as usize);
        if n == 0 {
            continue;
        }
        let f = w.lin2[e].k();
        let inner = &mut inner[start * hidden..][..n * hidden];
        let act = if w.gated { Act::None } else { w.act };
        let input = Mat::new(&inputs[start * d..], n, d);
        linear(cx, input, &w.lin1[e], act, Store::Set, MatMut::new(inner, n, hidden));
        if w.gated {
            for row in inner.chunks_exact_mut(hidden) {
                let (a, b) = row.split_at_mut(f);
                gate(cx.level, w.act, a, b);
            }
        }
        let inner = Mat::new(inner, n, hidden).columns(0..f);
        let out = MatMut::new(&mut outputs[start * d_out..], n, d_out);
        linear(cx, inner, &w.lin2[e], Act::None, Store::Set, out);
    }
    for r in 0..m {
        let y = y.row(r);
        if store == Store::Set {
            y.fill(0.0);
        }
        for (place, p) in place[r * k..][..k].iter().zip(&values[r * k..][..k]) {
            let out = &outputs[*place as usize * d_out..][..d_out];
            y.iter_mut().zip(out).for_each(|(y, o)| *y += p * o);
        }
    }
    chosen
}

/// The `chosen.len()` largest of `p`, best first, the lower index first where two are equal; NaN is never above a number.
fn best(p: &[f32], chosen: &mut [u32], values: &mut [f32]) {
    for i in 0..chosen.len() {
        let taken = |e: usize| chosen[..i].contains(&(e as u32));
        let free = (0..p.len()).filter(|e| !taken(*e));
        let e = free.reduce(|a, b| if p[b] > p[a] || (p[a].is_nan() && !p[b].is_nan()) { b } else { a }).unwrap_or(0);
        (chosen[i], values[i]) = (e as u32, p[e]);
    }
}

use crate::machine::{self, Memory, Numbers, Schedule, after, close, every_schedule, launch, rounded};
use crate::scalar;
use crate::testing::Rng;
use ssm_kernels::cross_scan::{CrossScan, Mode};
use ssm_kernels::cuda::selective_scan::{Args, chunk, order};
use ssm_kernels::cuda::{Kind, Ptr};
use ssm_kernels::selective_scan::{Order, Scan, selective_scan};
use ssm_kernels::{Mat, MatMut};

/// Sequences, each with all directions; rows of everything with a NaN behind them.
#[derive(Clone, Copy, Debug, Default)]
struct Shape {
    batch: usize,
    len: usize,
    d: usize,
    n: usize,
    groups: usize,
    /// Options: 0 all, 1 neither bias nor skip, 2 no gate and another scale, 3 added, without softplus.
    variant: usize,
    kind: Kind,
    orders: &'static [u32],
    height: usize,
    chunk: usize,
    carried: u32,
    /// Steps at which a call ends and another begins, of one sequence.
    cuts: &'static [usize],
}

struct Case {
    shape: Shape,
    u: Vec<f32>,
    dt: Vec<f32>,
    dt_bias: Vec<f32>,
    scale: Vec<f32>,
    a: Vec<f32>,
    bc: Vec<f32>,
    skip: Vec<f32>,
    z: Vec<f32>,
    y: Vec<f32>,
    /// One slot more than there are sequences, and room between the slots.
    pool: Vec<f32>,
    slots: Vec<u32>,
}

impl Case {
    fn new(rng: &mut Rng, s: Shape) -> Self {
        let (rows, k, gn) = (s.batch * s.len, s.orders.len(), s.groups * s.n);
        let padded = |rng: &mut Rng, rows, cols, kind| rounded(kind, &machine::rows(rng, rows, cols));
        // A step below 0 would make the state grow without bound.
        let step = |v: Vec<f32>| if s.variant == 3 { v.iter().map(|v| v.abs()).collect() } else { v };
        Self {
            shape: s,
            u: padded(rng, k * rows, s.d, s.kind),
            dt: step(padded(rng, k * rows, s.d, Kind::F32)),
            dt_bias: step(rng.vec(k * s.d)),
            scale: (0..s.batch).map(|b| 0.5 + b as f32).collect(),
            a: (0..k * s.n * s.d).map(|_| -(rng.normal().exp()) * 4.0).collect(),
            bc: padded(rng, k * rows, 2 * gn, Kind::F32),
            skip: rng.vec(k * s.d),
            z: padded(rng, rows, s.d, s.kind),
            y: padded(rng, k * rows, s.d, s.kind),
            pool: rng.vec((s.batch + 1) * (k * s.n * s.d + 3)),
            slots: (0..s.batch as u32).map(|b| s.batch as u32 - b).collect(),
        }
    }

    fn slot_len(&self) -> usize {
        self.shape.orders.len() * self.shape.n * self.shape.d + 3
    }

    /// y and the pool by the scalar form.
    fn judge(&self) -> [Vec<f32>; 2] {
        let Shape { batch, len, d, n, groups, variant, height, .. } = self.shape;
        let (rows, gn) = (batch * len, groups * n);
        let cross = CrossScan::new(Mode::Cross2d, height, len.checked_div(height).unwrap_or(0));
        let (mut y, mut pool) = (self.y.clone(), self.pool.clone());
        for (k, by) in self.shape.orders.iter().enumerate() {
            for b in 0..batch {
                let from = k * rows + b * len;
                let bc = rows_of(len, &self.bc, from, 2 * gn);
                let scan = Scan {
                    u: rows_of(len, &self.u, from, d),
                    dt: rows_of(len, &self.dt, from, d),
                    dt_bias: (variant != 1).then_some(&self.dt_bias[k * d..][..d]),
                    softplus: variant != 3,
                    scale: if variant == 2 { self.scale[b] } else { 1.0 },
                    a: &self.a[k * n * d..][..n * d],
                    b: bc.columns(0..gn),
                    c: bc.columns(gn..2 * gn),
                    d: (variant != 1).then_some(&self.skip[k * d..][..d]),
                    z: (variant != 2).then_some(rows_of(len, &self.z, b * len, d)),
                    order: match *by {
                        order::FORWARD => Order::Forward,
                        order::REVERSE => Order::Reverse,
                        columns => cross.order(if columns == order::COLUMNS { 1 } else { 3 }),
                    },
                    add: variant == 3,
                };
                let mut h = vec![0.0; n * d];
                let slot = &mut pool[self.slots[b] as usize * self.slot_len() + k * n * d..][..n * d];
                let h = if self.shape.carried >> k & 1 == 0 { &mut h } else { slot };
                let y = &mut y[from * (d + 1)..];
                selective_scan(&scalar(), &scan, h, MatMut::strided(y, len, d, d + 1));
            }
        }
        [y, pool]
    }

    /// The same by the kernels.
    fn run(&self, schedule: Schedule) -> Result<Vec<Vec<f32>>, String> {
        let Shape { batch, len, d, n, groups, variant, kind, orders, height, chunk, carried, cuts } = self.shape;
        let (rows, k, gn) = (batch * len, orders.len(), groups * n);
        let single = |v: &[f32]| Memory::new(schedule, v);
        let (dt, dt_bias, a, bc, skip) =
            (single(&self.dt), single(&self.dt_bias), single(&self.a), single(&self.bc), single(&self.skip));
        let [u, z, y] = [&self.u, &self.z, &self.y].map(|v| Numbers::new(schedule, kind, v));
        let (pool, scale, slots) = (single(&self.pool), single(&self.scale), Memory::new(schedule, &self.slots));
        let given = |yes: bool, p: Ptr| if yes { p } else { Ptr::NONE };
        let wide = |cols: usize| ((rows * (cols + 1)) as u64, cols as u32 + 1);
        let ((dir, stride), (bc_dir, bc_stride)) = (wide(d), wide(2 * gn));
        let mut args = Args {
            u: u.ptr(),
            dt: dt.ptr(),
            dt_bias: given(variant != 1, dt_bias.ptr()),
            a: a.ptr(),
            b: bc.ptr(),
            c: Ptr(bc.ptr().0 + 4 * gn as u64),
            skip: given(variant != 1, skip.ptr()),
            z: given(variant != 2, z.ptr()),
            y: y.ptr(),
            scale: given(variant == 2, scale.ptr()),
            state: pool.ptr(),
            slots: slots.ptr(),
            chunk_state: Ptr::NONE,
            u_dir: dir,
            dt_dir: dir,
            bc_dir,
            y_dir: dir,
            state_dir: (n * d) as u64,
            state_stride: self.slot_len() as u64,
            u_stride: stride,
            dt_stride: stride,
            bc_stride,
            z_stride: stride,
            y_stride: stride,
            kind,
            batch: batch as u32,
            len: len as u32,
            d: d as u32,
            n: n as u32,
            per_group: (d / groups) as u32,
            orders: order::pack(orders),
            height: height as u32,
            chunk: if chunk == 0 { len as u32 } else { chunk as u32 },
            softplus: u32::from(variant != 3),
            add: u32::from(variant == 3),
            ends: 0,
            carried,
        };
        let k = k as u32;
        let work = single(&vec![f32::NAN; args.chunk_state_len(k)]);
        if args.chunks() > 1 {
            args.chunk_state = work.ptr();
            let (ends, l) = args.ends(k).map_err(|e| e.to_string())?;
            launch(schedule, &l, &ends)?;
            launch(schedule, &args.join(k).map_err(|e| e.to_string())?, &args)?;
        }
        let mut from = 0;
        for to in cuts.iter().copied().chain([len]) {
            let part = Args {
                u: after(args.u, from, args.u_stride),
                dt: after(args.dt, from, args.dt_stride),
                b: after(args.b, from, args.bc_stride),
                c: after(args.c, from, args.bc_stride),
                z: after(args.z, from, args.z_stride),
                y: after(args.y, from, args.y_stride),
                len: (to - from) as u32,
                ..args
            };
            launch(schedule, &part.scan(k).map_err(|e| e.to_string())?, &part)?;
            from = to;
        }
        Ok(vec![y.read(), pool.read()])
    }

    #[track_caller]
    fn check(&self, tolerance: f32) {
        let [y, pool] = self.judge();
        let got = every_schedule(|s| self.run(s)).unwrap_or_else(|e| panic!("{:?}: {e}", self.shape));
        let what = format!("{:?}", self.shape);
        close(&format!("{what}: y"), self.shape.kind, tolerance, &got[0], &y);
        close(&format!("{what}: state"), Kind::F32, tolerance, &got[1], &pool);
    }
}

/// `len` rows of `cols` values with one between them.
fn rows_of(len: usize, v: &[f32], from: usize, cols: usize) -> Mat<'_> {
    Mat::strided(&v[from * (cols + 1)..], len, cols, cols + 1)
}

const FORWARD: &[u32] = &[order::FORWARD];

/// exp by way of base 2 and sums in another order: a few roundings of the largest value.
const TOLERANCE: f32 = 4e-6;

#[test]
fn agrees_with_scalar() {
    let mut rng = Rng::new(5);
    for (len, d, n, groups) in [
        (0, 4, 16, 1),
        (1, 1, 1, 1),
        (1, 17, 16, 1),
        (33, 6, 16, 1),
        (65, 8, 3, 1),
        (30, 12, 1, 4),
        (21, 8, 4, 2),
        (64, 33, 8, 1),
        (7, 15, 13, 3),
        (197, 70, 16, 1),
        (128, 136, 14, 1),
        (9, 16, 1, 1),
        (50, 130, 1, 1),
        (17, 19, 64, 1),
        (16, 9, 50, 1),
        (15, 10, 128, 2),
        (18, 3, 100, 1),
    ] {
        for variant in 0..4 {
            let orders = if variant == 2 { &[order::REVERSE] } else { FORWARD };
            let batch = if variant % 3 > 0 { 3 } else { 1 };
            let shape = Shape { batch, len, d, n, groups, variant, orders, carried: 1, ..Shape::default() };
            Case::new(&mut rng, shape).check(TOLERANCE);
        }
    }
}

#[test]
fn directions_share_a_launch() {
    let mut rng = Rng::new(6);
    let cross = &[order::FORWARD, order::COLUMNS, order::REVERSE, order::COLUMNS_REVERSE];
    for (orders, height, width) in [(&[order::FORWARD, order::REVERSE][..], 1, 37), (cross, 3, 7), (cross, 8, 5)] {
        for (n, carried) in [(1, 0), (16, 0b0101)] {
            let (batch, len, d, groups) = (2, height * width, 35, 1);
            let shape = Shape { batch, len, d, n, groups, orders, height, carried, ..Shape::default() };
            Case::new(&mut rng, shape).check(TOLERANCE);
        }
    }
}

#[test]
fn halves_are_read_and_written() {
    let mut rng = Rng::new(7);
    for kind in [Kind::Bf16, Kind::F16] {
        for variant in [0, 3] {
            let shape = Shape {
                batch: 2,
                len: 35,
                d: 34,
                n: 16,
                groups: 1,
                variant,
                kind,
                orders: FORWARD,
                ..Shape::default()
            };
            Case::new(&mut rng, shape).check(TOLERANCE);
        }
    }
}

#[test]
fn chunks_join() {
    let mut rng = Rng::new(8);
    let both = &[order::FORWARD, order::REVERSE];
    for (len, chunk, d, n, orders) in
        [(33, 16, 5, 16, FORWARD), (64, 32, 33, 1, both), (100, 48, 18, 16, both), (65, 16, 9, 60, FORWARD)]
    {
        for carried in [0, 1, 3] {
            let shape = Shape { batch: 2, len, d, n, groups: 1, orders, chunk, carried, ..Shape::default() };
            Case::new(&mut rng, shape).check(2.0 * TOLERANCE);
        }
    }
    assert_eq!((chunk(197, 12, 132), chunk(1 << 16, 12, 132), chunk(1 << 16, 400, 132)), (197, 2992, 1 << 16));
}

#[test]
fn too_many_states_are_an_error() {
    let args = Args { n: 129, d: 1, per_group: 1, batch: 1, ..Args::default() };
    assert_eq!(args.scan(1).unwrap_err().to_string(), "selective_scan: states: at most 128, got 129");
}

#[test]
fn any_cut_gives_the_same_bits() {
    for (d, n) in [(40, 16), (130, 1), (17, 64), (9, 128)] {
        let shape = Shape { batch: 1, len: 75, d, n, groups: 1, orders: FORWARD, carried: 1, ..Shape::default() };
        let run = |cuts| {
            let case = Case::new(&mut Rng::new(9), Shape { cuts, ..shape });
            every_schedule(|s| case.run(s)).unwrap_or_else(|e| panic!("{d} channels, {n} states, {cuts:?}: {e}"))
        };
        let bits = |v: Vec<Vec<f32>>| v.concat().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        let whole = bits(run(&[]));
        for cuts in [&[1][..], &[0, 7, 7, 8, 40], &[16, 32, 74]] {
            assert!(bits(run(cuts)) == whole, "{d} channels, {n} states, {cuts:?}");
        }
    }
}

use crate::machine::{self, Memory, Schedule, close, every_schedule, launch};
use crate::scalar;
use crate::testing::Rng;
use ssm_kernels::attention::{Bias, Query, Sizes, attend, remember};
use ssm_kernels::cuda::Kind;
use ssm_kernels::cuda::Ptr;
use ssm_kernels::cuda::attention::Args;

fn check(
    rng: &mut Rng,
    (heads, dim, slots): (usize, usize, usize),
    batch: usize,
    len: usize,
    adds: bool,
    biased: bool,
) {
    let what = format!("{batch}x{len}, {heads} heads of {dim}, {slots} slots, adds {adds}, bias {biased}");
    let sizes = Sizes { heads, dim, slots };
    let (width, padded) = (sizes.width(), sizes.padded());
    let (k_len, v_len) = (width * padded, slots * width);
    let [q, keys, values] = std::array::from_fn(|_| machine::rows(rng, batch * len, width));
    let (scale, table) = (rng.vec(heads), rng.vec(heads * slots));
    let bias = Bias::new(sizes, |head, age| table[head * slots + slots - 1 - age]);
    // Streams at the beginning, in the middle and long after the memory was full.
    let positions: Vec<u32> = (0..batch).map(|b| [1, slots as u32 - 1, 5 * slots as u32 + 3][b % 3].max(1)).collect();
    let order: Vec<u32> = (0..batch as u32).rev().collect();
    // What was never written is never read.
    let (mut k, mut v) = (vec![f32::NAN; batch * (k_len + 1)], vec![f32::NAN; batch * (v_len + 2)]);
    for b in 0..batch {
        let at = order[b] as usize;
        for slot in 0..(positions[b] as usize).min(slots) {
            let (key, value) = (rng.vec(width), rng.vec(width));
            let (k, v) = (&mut k[at * (k_len + 1)..][..k_len], &mut v[at * (v_len + 2)..][..v_len]);
            remember(sizes, slot, &key, &value, k, v);
        }
    }

    let mut want = vec![f32::NAN; batch * len * (width + 1)];
    let (mut want_k, mut want_v) = (k.clone(), v.clone());
    let mut scratch = vec![0.0; sizes.scratch_len()];
    for b in 0..batch {
        let at = order[b] as usize;
        let k = &mut want_k[at * (k_len + 1)..][..k_len];
        let v = &mut want_v[at * (v_len + 2)..][..v_len];
        for t in 0..len {
            let row = (b * len + t) * (width + 1);
            let mut position = positions[b] as usize;
            let mut newest = 0;
            if adds {
                newest = (position + t) % slots;
                position += t + 1;
                remember(sizes, newest, &keys[row..][..width], &values[row..][..width], k, v);
            }
            let bias = biased.then_some((&bias, newest));
            let query = Query { sizes, q: &q[row..][..width], k, v, filled: position.min(slots), scale: &scale, bias };
            attend(&scalar(), &query, &mut scratch, &mut want[row..][..width]);
        }
    }

    let run = |schedule: Schedule| {
        let single = |v: &[f32]| Memory::new(schedule, v);
        let (q, keys, values, scale, table) =
            (single(&q), single(&keys), single(&values), single(&scale), single(&table));
        let (k, v, y) = (single(&k), single(&v), single(&vec![f32::NAN; want.len()]));
        let (positions, order) = (Memory::new(schedule, &positions), Memory::new(schedule, &order));
        let given = |yes: bool, p: Ptr| if yes { p } else { Ptr::NONE };
        let stride = width as u32 + 1;
        let args = Args {
            q: q.ptr(),
            keys: given(adds, keys.ptr()),
            values: given(adds, values.ptr()),
            y: y.ptr(),
            k: k.ptr(),
            v: v.ptr(),
            pool_slots: order.ptr(),
            positions: positions.ptr(),
            scale: scale.ptr(),
            bias: given(biased, table.ptr()),
            k_stride: k_len as u64 + 1,
            v_stride: v_len as u64 + 2,
            q_stride: stride,
            keys_stride: stride,
            values_stride: stride,
            y_stride: stride,
            batch: batch as u32,
            len: len as u32,
            heads: heads as u32,
            dim: dim as u32,
            slots: slots as u32,
            padded: padded as u32,
        };
        launch(schedule, &args.launch().map_err(|e| e.to_string())?, &args)?;
        Ok(vec![y.read(), k.read(), v.read()])
    };
    let got = every_schedule(run).unwrap_or_else(|e| panic!("{what}: {e}"));
    close(&what, Kind::F32, 4e-6, &got[0], &want);
    close(&format!("{what}: keys"), Kind::F32, 0.0, &got[1], &want_k);
    close(&format!("{what}: values"), Kind::F32, 0.0, &got[2], &want_v);
}

#[test]
fn agrees_with_scalar() {
    let mut rng = Rng::new(51);
    for sizes in [(1, 1, 1), (2, 5, 7), (3, 33, 16), (1, 64, 40), (4, 8, 33)] {
        for (batch, len) in [(1, 0), (3, 1), (3, 9)] {
            check(&mut rng, sizes, batch, len, true, true);
            check(&mut rng, sizes, batch, len, true, false);
            check(&mut rng, sizes, batch, len, false, false);
        }
    }
}

/* What a Mamba mixer and its norms do between the matrices, forward and backward, single precision.
 *
 *   convolve:  y = silu(bias + sum_j w[j] x[t - 3 + j])
 *   scan:      d = softplus(bias + w dt[t]),  h[t] = exp(d a) h[t-1] + d b[t] x[t],
 *              y[t] = (sum_n c[t] h[t] + skip x[t]) silu(z[t])
 *   norm:      y = w x / sqrt(mean(x^2) + 1e-5)
 *
 * Of B clips of T frames x, y and their gradients are (B, T, E), xz (B, T, 2E), where the convolution reads the first half
 * and the scan its gate z from the second, p (B, T, R + 2N) with dt, b and c side by side; w of the convolution (4, E), of
 * the scan (R, E), a (N, E), biases and skip (E). The gradients of what clips share have a row for every clip. The backward
 * calls compute the forward ones again. Channels go by sixteen, E is a multiple of it; N and R are at most 16. */

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define WIDE 16
#define MOST 16
#define EACH(i, n) _Pragma("GCC unroll 16") for (int i = 0; i < (n); i++)

typedef float lanes __attribute__((vector_size(4 * WIDE)));
typedef int whole __attribute__((vector_size(4 * WIDE)));

static inline lanes load(const float *p) {
    lanes v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline void store(float *p, lanes v) { memcpy(p, &v, sizeof v); }

static inline float sum(lanes v) {
    float s = 0;
    for (int i = 0; i < WIDE; i++) s += v[i];
    return s;
}

static inline lanes pick(whole first, lanes a, lanes b) { return (lanes)((first & (whole)a) | (~first & (whole)b)); }
static inline lanes least(lanes a, lanes b) { return pick(a < b, a, b); }
static inline lanes most(lanes a, lanes b) { return pick(a > b, a, b); }

/* 2^k times a polynomial, relative error below 3e-7. */
static inline lanes exponential(lanes x) {
    lanes v = least(most(x * 1.44269504f, (lanes){} - 126.0f), (lanes){} + 126.0f);
    whole k = __builtin_convertvector(v + 127.5f, whole);
    lanes f = v - __builtin_convertvector(k - 127, lanes);
    lanes p = (lanes){} + 1.5403530e-4f;
    p = p * f + 1.3333558e-3f;
    p = p * f + 9.6181291e-3f;
    p = p * f + 5.5504109e-2f;
    p = p * f + 2.4022651e-1f;
    p = p * f + 6.9314718e-1f;
    p = p * f + 1.0f;
    return p * (lanes)(k << 23);
}

static inline lanes sigmoid(lanes x) { return 1.0f / (1.0f + exponential(-x)); }

/* log(1 + u) = 2 artanh(u / (2 + u)) for u = exp(-|x|). */
static inline lanes softplus(lanes x) {
    lanes u = exponential(least(x, -x)), s = u / (2.0f + u), q = s * s;
    lanes p = (lanes){} + 1.0f / 13;
    p = p * q + 1.0f / 11;
    p = p * q + 1.0f / 9;
    p = p * q + 1.0f / 7;
    p = p * q + 1.0f / 5;
    p = p * q + 1.0f / 3;
    p = p * q + 1.0f;
    return most(x, (lanes){}) + 2.0f * s * p;
}

void convolve_forward(int B, int T, int E, int stride, const float *x, const float *w, const float *bias, float *y) {
    for (int k = 0; k < B; k++)
        for (int e = 0; e < E; e += WIDE) {
            const float *in = x + (size_t)k * T * stride + e;
            float *out = y + (size_t)k * T * E + e;
            lanes w0 = load(w + e), w1 = load(w + E + e), w2 = load(w + 2 * E + e), w3 = load(w + 3 * E + e);
            lanes x0 = {0}, x1 = {0}, x2 = {0}, add = load(bias + e);
            for (int t = 0; t < T; t++) {
                lanes x3 = load(in + (size_t)t * stride), v = add + w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3;
                store(out + (size_t)t * E, v * sigmoid(v));
                x0 = x1, x1 = x2, x2 = x3;
            }
        }
}

/* gx has the stride of x; gw is (B, 4, E). */
void convolve_backward(int B, int T, int E, int stride, const float *x, const float *w, const float *bias, const float *gy,
                       float *gx, float *gw, float *gbias) {
    for (int k = 0; k < B; k++)
        for (int e = 0; e < E; e += WIDE) {
            const float *in = x + (size_t)k * T * stride + e, *from = gy + (size_t)k * T * E + e;
            float *to = gx + (size_t)k * T * stride + e;
            lanes ws[4], xs[4], gws[4] = {{0}}, g1 = {0}, g2 = {0}, g3 = {0}, add = load(bias + e), all = {0};
            EACH(j, 4) ws[j] = load(w + j * E + e);
            EACH(j, 4) xs[j] = T - 4 + j >= 0 ? load(in + (size_t)(T - 4 + j) * stride) : (lanes){0};
            for (int t = T - 1; t >= 0; t--) {
                lanes v = add + ws[0] * xs[0] + ws[1] * xs[1] + ws[2] * xs[2] + ws[3] * xs[3], s = sigmoid(v);
                lanes g = load(from + (size_t)t * E) * (s + v * s * (1.0f - s));
                all += g;
                EACH(j, 4) gws[j] += g * xs[j];
                store(to + (size_t)t * stride, g * ws[3] + g1 * ws[2] + g2 * ws[1] + g3 * ws[0]);
                g3 = g2, g2 = g1, g1 = g;
                xs[3] = xs[2], xs[2] = xs[1], xs[1] = xs[0];
                xs[0] = t >= 4 ? load(in + (size_t)(t - 4) * stride) : (lanes){0};
            }
            EACH(j, 4) store(gw + ((size_t)k * 4 + j) * E + e, gws[j]);
            store(gbias + (size_t)k * E + e, all);
        }
}

/* The step before softplus. */
static inline lanes step(const float *dt, const lanes *ws, lanes bias, int R) {
    EACH(r, R) bias += ws[r] * dt[r];
    return bias;
}

static inline __attribute__((always_inline)) void scan_forward1(int T, int E, int R, int N, const float *x, const float *p,
                                                                 const float *w, const float *bias, const float *a,
                                                                 const float *skip, const float *z, float *y) {
    lanes aw[MOST], ws[MOST], h[MOST], skips = load(skip), add = load(bias);
    EACH(n, N) aw[n] = load(a + n * E), h[n] = (lanes){0};
    EACH(r, R) ws[r] = load(w + r * E);
    for (int t = 0; t < T; t++, p += R + 2 * N) {
        const float *b = p + R, *c = b + N;
        lanes d = softplus(step(p, ws, add, R)), xt = load(x + (size_t)t * E), dx = d * xt, out = skips * xt;
        EACH(n, N) {
            h[n] = exponential(d * aw[n]) * h[n] + dx * b[n];
            out += h[n] * c[n];
        }
        lanes zt = load(z + (size_t)t * 2 * E);
        store(y + (size_t)t * E, out * zt * sigmoid(zt));
    }
}

void scan_forward(int B, int T, int E, int R, int N, const float *x, const float *p, const float *w, const float *bias,
                  const float *a, const float *skip, const float *xz, float *y) {
    for (int k = 0; k < B; k++)
        for (int e = 0; e < E; e += WIDE) {
            size_t at = (size_t)k * T * E + e;
            const float *z = xz + 2 * (size_t)k * T * E + E + e, *pk = p + (size_t)k * T * (R + 2 * N);
#define GO(R, N) scan_forward1(T, E, R, N, x + at, pk, w + e, bias + e, a + e, skip + e, z, y + at)
            if (R == 2 && N == 8) GO(2, 8);
            else if (R == 8 && N == 16) GO(8, 16);
            else GO(R, N);
#undef GO
        }
}

/* Room for the backward call of one clip: decays and states, and the gradients of p in lanes. */
typedef struct {
    lanes *keeps, *hs, *gp, *steps, *sums;
} Room;

static inline __attribute__((always_inline)) void scan_backward1(
    int T, int E, int R, int N, Room room, const float *x, const float *p, const float *w, const float *bias,
    const float *a, const float *skip, const float *z, const float *gy, float *gx, float *gw, float *gbias, float *ga,
    float *gskip, float *gz) {
    int row = R + 2 * N;
    lanes aw[MOST], ws[MOST], h[MOST], g[MOST], gaw[MOST], gws[MOST], skips = load(skip), add = load(bias);
    lanes gs = {0}, gb = {0};
    EACH(n, N) aw[n] = load(a + n * E), h[n] = g[n] = gaw[n] = (lanes){0};
    EACH(r, R) ws[r] = load(w + r * E), gws[r] = (lanes){0};
    EACH(n, N) room.hs[n] = (lanes){0};
    for (int t = 0; t < T; t++) {
        const float *pt = p + (size_t)t * row, *b = pt + R, *c = b + N;
        lanes *keep = room.keeps + (size_t)t * N, *after = room.hs + (size_t)(t + 1) * N;
        lanes d = softplus(step(pt, ws, add, R)), xt = load(x + (size_t)t * E), dx = d * xt, out = skips * xt;
        EACH(n, N) {
            keep[n] = exponential(d * aw[n]);
            after[n] = h[n] = keep[n] * h[n] + dx * b[n];
            out += h[n] * c[n];
        }
        room.steps[t] = d;
        room.sums[t] = out;
    }
    for (int t = T - 1; t >= 0; t--) {
        const float *pt = p + (size_t)t * row, *b = pt + R, *c = b + N;
        const lanes *keep = room.keeps + (size_t)t * N, *before = room.hs + (size_t)t * N, *after = before + N;
        lanes *gdt = room.gp + (size_t)t * row, *gbt = gdt + R, *gct = gbt + N;
        lanes d = room.steps[t], xt = load(x + (size_t)t * E), zt = load(z + (size_t)t * 2 * E), dx = d * xt;
        lanes s = sigmoid(zt), v = load(gy + (size_t)t * E), out = v * zt * s, gd = {0}, gdx = {0};
        store(gz + (size_t)t * 2 * E, v * room.sums[t] * (s + zt * s * (1.0f - s)));
        EACH(n, N) {
            lanes gn = g[n] + out * c[n], back = gn * keep[n], arg = back * before[n];
            g[n] = back;
            gct[n] += out * after[n];
            gbt[n] += gn * dx;
            gd += arg * aw[n];
            gaw[n] += arg * d;
            gdx += gn * b[n];
        }
        gs += out * xt;
        store(gx + (size_t)t * E, gdx * d + out * skips);
        gd = (gd + gdx * xt) * (1.0f - exponential(-d)); /* softplus' = 1 - exp(-softplus) */
        gb += gd;
        EACH(r, R) {
            gdt[r] += gd * ws[r];
            gws[r] += gd * pt[r];
        }
    }
    EACH(n, N) store(ga + n * E, gaw[n]);
    EACH(r, R) store(gw + r * E, gws[r]);
    store(gbias, gb);
    store(gskip, gs);
}

/* gxz gets its second half; gw is (B, R, E), ga (B, N, E). */
void scan_backward(int B, int T, int E, int R, int N, const float *x, const float *p, const float *w, const float *bias,
                   const float *a, const float *skip, const float *xz, const float *gy, float *gx, float *gp, float *gw,
                   float *gbias, float *ga, float *gskip, float *gxz) {
    int row = R + 2 * N;
    lanes *all = aligned_alloc(sizeof(lanes), sizeof(lanes) * ((size_t)T * (2 * N + row + 2) + N));
    Room room = {all, all + (size_t)T * N};
    room.gp = room.hs + (size_t)(T + 1) * N, room.steps = room.gp + (size_t)T * row, room.sums = room.steps + T;
    for (int k = 0; k < B; k++) {
        memset(room.gp, 0, sizeof(lanes) * T * row);
        for (int e = 0; e < E; e += WIDE) {
            size_t at = (size_t)k * T * E + e, gate = 2 * (size_t)k * T * E + E + e, one = (size_t)k * E + e;
            const float *pk = p + (size_t)k * T * row;
#define GO(R, N)                                                                                                          \
    scan_backward1(T, E, R, N, room, x + at, pk, w + e, bias + e, a + e, skip + e, xz + gate, gy + at, gx + at,          \
                   gw + (size_t)k * R * E + e, gbias + one, ga + (size_t)k * N * E + e, gskip + one, gxz + gate)
            if (R == 2 && N == 8) GO(2, 8);
            else if (R == 8 && N == 16) GO(8, 16);
            else GO(R, N);
#undef GO
        }
        for (size_t j = 0; j < (size_t)T * row; j++) gp[(size_t)k * T * row + j] = sum(room.gp[j]);
    }
    free(all);
}

static inline float root(int D, const float *x) {
    lanes s = {0};
    for (int i = 0; i < D; i += WIDE) {
        lanes v = load(x + i);
        s += v * v;
    }
    return 1.0f / __builtin_sqrtf(sum(s) / D + 1e-5f);
}

void norm_forward(int rows, int D, const float *x, const float *w, float *y) {
    for (int k = 0; k < rows; k++, x += D, y += D) {
        float r = root(D, x);
        for (int i = 0; i < D; i += WIDE) store(y + i, load(w + i) * load(x + i) * r);
    }
}

/* gw (D). */
void norm_backward(int rows, int D, const float *x, const float *w, const float *gy, float *gx, float *gw) {
    memset(gw, 0, sizeof(float) * D);
    for (int k = 0; k < rows; k++, x += D, gy += D, gx += D) {
        float r = root(D, x);
        lanes s = {0};
        for (int i = 0; i < D; i += WIDE) {
            lanes v = load(x + i) * load(gy + i);
            s += v * load(w + i);
            store(gw + i, load(gw + i) + v * r);
        }
        float share = sum(s) * r * r / D;
        for (int i = 0; i < D; i += WIDE) store(gx + i, r * (load(w + i) * load(gy + i) - load(x + i) * share));
    }
}

/* The parts of the mixer between its matrices, forward and backward, single precision.
 *
 *   convolve:  y = silu(bias + sum_j w[j] x[t - 3 + j])
 *   scan:      d = softplus(delta[t]),  h[t] = exp(d a) h[t-1] + d b[t] x[t],
 *              y[t] = (sum_n c[t] h[t] + skip x[t]) silu(z[t])
 *
 * x, delta, z, y and their gradients are (T, E) for one clip, b and c (T, N), a (E, N), bias and skip (E), w (E, 4). The
 * caller gives every clip to a call of its own, so that clips run in parallel; nothing is kept from the forward call, the
 * backward one computes it again. N is at most 16. */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define WIDE 16

typedef float lanes[WIDE];

/* exp: 2^k times a polynomial, relative error below 3e-7. */
static inline float exp1(float x) {
    float v = x * 1.44269504f;
    v = v < -126.0f ? -126.0f : v > 126.0f ? 126.0f : v;
    float whole = floorf(v + 0.5f), f = v - whole;
    float p = 1.5403530e-4f;
    p = p * f + 1.3333558e-3f;
    p = p * f + 9.6181291e-3f;
    p = p * f + 5.5504109e-2f;
    p = p * f + 2.4022651e-1f;
    p = p * f + 6.9314718e-1f;
    p = p * f + 1.0f;
    union { int i; float f; } two = {.i = ((int)whole + 127) << 23};
    return p * two.f;
}

static inline float sigmoid(float x) { return 1.0f / (1.0f + exp1(-x)); }

void convolve_forward(int T, int E, const float *x, const float *w, const float *bias, float *y) {
    float *taps = aligned_alloc(64, sizeof(float) * ((4 * E + 15) / 16 * 16));
    for (int e = 0; e < E; e++)
        for (int j = 0; j < 4; j++) taps[j * E + e] = w[e * 4 + j];
    for (int t = 0; t < T; t++) {
        float *yt = y + (size_t)t * E;
        memcpy(yt, bias, sizeof(float) * E);
        for (int j = 0; j < 4; j++) {
            if (t - 3 + j < 0) continue;
            const float *xt = x + (size_t)(t - 3 + j) * E, *wj = taps + j * E;
            for (int e = 0; e < E; e++) yt[e] += wj[e] * xt[e];
        }
        for (int e = 0; e < E; e++) yt[e] *= sigmoid(yt[e]);
    }
    free(taps);
}

/* gw is (4, E). */
void convolve_backward(int T, int E, const float *x, const float *w, const float *bias, const float *gy, float *gx,
                       float *gw, float *gbias) {
    float *taps = aligned_alloc(64, sizeof(float) * ((5 * E + 15) / 16 * 16)), *g = taps + 4 * E;
    for (int e = 0; e < E; e++)
        for (int j = 0; j < 4; j++) taps[j * E + e] = w[e * 4 + j];
    memset(gx, 0, sizeof(float) * (size_t)T * E);
    memset(gw, 0, sizeof(float) * 4 * E);
    memset(gbias, 0, sizeof(float) * E);
    for (int t = 0; t < T; t++) {
        memcpy(g, bias, sizeof(float) * E);
        for (int j = 0; j < 4; j++) {
            if (t - 3 + j < 0) continue;
            const float *xt = x + (size_t)(t - 3 + j) * E, *wj = taps + j * E;
            for (int e = 0; e < E; e++) g[e] += wj[e] * xt[e];
        }
        for (int e = 0; e < E; e++) {
            float s = sigmoid(g[e]);
            g[e] = gy[(size_t)t * E + e] * (s + g[e] * s * (1.0f - s));
            gbias[e] += g[e];
        }
        for (int j = 0; j < 4; j++) {
            if (t - 3 + j < 0) continue;
            const float *xt = x + (size_t)(t - 3 + j) * E, *wj = taps + j * E;
            float *gxt = gx + (size_t)(t - 3 + j) * E, *gwj = gw + j * E;
            for (int e = 0; e < E; e++) {
                gxt[e] += g[e] * wj[e];
                gwj[e] += g[e] * xt[e];
            }
        }
    }
    free(taps);
}

static void widen(float *out, const float *in, int rows, int n) {
    memset(out, 0, sizeof(float) * WIDE * rows);
    for (int t = 0; t < rows; t++) memcpy(out + t * WIDE, in + t * n, sizeof(float) * n);
}

/* softplus of (T, E). */
static float *softplus(int T, int E, const float *delta) {
    size_t n = (size_t)T * E;
    float *out = aligned_alloc(64, sizeof(float) * ((n + 15) / 16 * 16));
    for (size_t i = 0; i < n; i++) out[i] = delta[i] > 20 ? delta[i] : log1pf(exp1(delta[i]));
    return out;
}

void scan_forward(int T, int E, int N, const float *x, const float *delta, const float *a, const float *b,
                  const float *c, const float *skip, const float *z, float *y) {
    float *bw = aligned_alloc(64, sizeof(float) * WIDE * T * 2), *cw = bw + WIDE * T, *soft = softplus(T, E, delta);
    widen(bw, b, T, N);
    widen(cw, c, T, N);
    for (int e = 0; e < E; e++) {
        lanes aw = {0}, h = {0};
        memcpy(aw, a + e * N, sizeof(float) * N);
        for (int t = 0; t < T; t++) {
            float d = soft[t * E + e], xt = x[t * E + e], dx = d * xt, sum = 0;
            const float *bt = bw + t * WIDE, *ct = cw + t * WIDE;
            for (int n = 0; n < WIDE; n++) {
                h[n] = exp1(d * aw[n]) * h[n] + dx * bt[n];
                sum += h[n] * ct[n];
            }
            y[t * E + e] = sum + skip[e] * xt;
        }
    }
    for (size_t i = 0; i < (size_t)T * E; i++) y[i] *= z[i] * sigmoid(z[i]);
    free(bw);
    free(soft);
}

void scan_backward(int T, int E, int N, const float *x, const float *delta, const float *a, const float *b,
                   const float *c, const float *skip, const float *z, const float *gy, float *gx, float *gdelta,
                   float *ga, float *gb, float *gc, float *gskip, float *gz) {
    size_t row = (size_t)WIDE * T;
    float *bw = aligned_alloc(64, sizeof(float) * row * 6), *cw = bw + row, *gbw = cw + row, *gcw = gbw + row;
    float *hs = gcw + row, *keeps = hs + row, *soft = softplus(T, E, delta);
    float *sums = aligned_alloc(64, sizeof(float) * (T + 16) / 16 * 16 + 64);
    const lanes none = {0};
    widen(bw, b, T, N);
    widen(cw, c, T, N);
    memset(gbw, 0, sizeof(float) * row * 2);
    for (int e = 0; e < E; e++) {
        lanes aw = {0}, h = {0}, g = {0}, gaw = {0};
        float gs = 0;
        memcpy(aw, a + e * N, sizeof(float) * N);
        for (int t = 0; t < T; t++) {
            float d = soft[t * E + e], dx = d * x[t * E + e], sum = 0;
            float *keep = keeps + t * WIDE, *ht = hs + t * WIDE;
            const float *bt = bw + t * WIDE, *ct = cw + t * WIDE;
            for (int n = 0; n < WIDE; n++) {
                keep[n] = exp1(d * aw[n]);
                h[n] = keep[n] * h[n] + dx * bt[n];
                ht[n] = h[n];
                sum += h[n] * ct[n];
            }
            sums[t] = sum;
        }
        for (int t = T - 1; t >= 0; t--) {
            int i = t * E + e;
            float d = soft[i], xt = x[i], zt = z[i], s = sigmoid(zt), gd = 0, gdx = 0;
            float gyt = gy[i] * zt * s;
            gz[i] = gy[i] * (sums[t] + skip[e] * xt) * (s + zt * s * (1.0f - s));
            const float *bt = bw + t * WIDE, *ct = cw + t * WIDE, *ht = hs + t * WIDE, *keep = keeps + t * WIDE;
            const float *before = t ? ht - WIDE : none;
            float *gbt = gbw + t * WIDE, *gct = gcw + t * WIDE;
            for (int n = 0; n < WIDE; n++) {
                gct[n] += gyt * ht[n];
                g[n] += gyt * ct[n];
                float garg = g[n] * keep[n] * before[n];
                gd += garg * aw[n];
                gaw[n] += garg * d;
                gdx += g[n] * bt[n];
                gbt[n] += g[n] * (d * xt);
                g[n] *= keep[n];
            }
            gx[i] = gdx * d + gyt * skip[e];
            gs += gyt * xt;
            gdelta[i] = (gd + gdx * xt) * sigmoid(delta[i]);
        }
        memcpy(ga + e * N, gaw, sizeof(float) * N);
        gskip[e] = gs;
    }
    for (int t = 0; t < T; t++) {
        memcpy(gb + t * N, gbw + t * WIDE, sizeof(float) * N);
        memcpy(gc + t * N, gcw + t * WIDE, sizeof(float) * N);
    }
    free(bw);
    free(soft);
    free(sums);
}

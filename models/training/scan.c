/* The parts of the mixer between its matrices, forward and backward, single precision.
 *
 *   convolve:  y = silu(bias + sum_j w[j] x[t - 3 + j])
 *   scan:      d = softplus(delta[t]),  h[t] = exp(d a) h[t-1] + d b[t] x[t],
 *              y[t] = (sum_n c[t] h[t] + skip x[t]) silu(z[t])
 *
 * x, delta, z, y and their gradients are (B, T, E) for B clips, b and c (B, T, N), a (E, N), bias and skip (E), w (E, 4);
 * the gradients of what clips share have a row for every clip. Nothing is kept from the forward call, the backward one
 * computes it again. Sixteen channels are worked on at once; N is at most 16. */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define WIDE 16
#define MOST 16

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

static void convolve_forward1(int T, int E, const float *x, const float *w, const float *bias, float *y) {
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
static void convolve_backward1(int T, int E, const float *x, const float *w, const float *bias, const float *gy,
                               float *gx, float *gw, float *gbias) {
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

void convolve_forward(int B, int T, int E, const float *x, const float *w, const float *bias, float *y) {
    size_t n = (size_t)T * E;
    for (int k = 0; k < B; k++) convolve_forward1(T, E, x + k * n, w, bias, y + k * n);
}

void convolve_backward(int B, int T, int E, const float *x, const float *w, const float *bias, const float *gy, float *gx,
                       float *gw, float *gbias) {
    size_t n = (size_t)T * E;
    for (int k = 0; k < B; k++)
        convolve_backward1(T, E, x + k * n, w, bias, gy + k * n, gx + k * n, gw + (size_t)k * 4 * E, gbias + (size_t)k * E);
}

/* Up to sixteen values, zeros behind them. */
static inline void take(lanes out, const float *in, int w) {
    for (int i = 0; i < WIDE; i++) out[i] = i < w ? in[i] : 0.0f;
}

static inline float softplus1(float v) { return v > 20 ? v : log1pf(exp1(v)); }

/* a of channels e .. e + w, (N, WIDE). */
static void turn(lanes *out, const float *a, int e, int w, int N) {
    for (int n = 0; n < N; n++)
        for (int i = 0; i < WIDE; i++) out[n][i] = i < w ? a[(e + i) * N + n] : 0.0f;
}

void scan_forward(int B, int T, int E, int N, const float *x, const float *delta, const float *a, const float *b,
                  const float *c, const float *skip, const float *z, float *y) {
    for (int k = 0; k < B; k++)
        for (int e = 0; e < E; e += WIDE) {
            int w = E - e < WIDE ? E - e : WIDE;
            lanes aw[MOST], h[MOST], skips;
            turn(aw, a, e, w, N);
            take(skips, skip + e, w);
            memset(h, 0, sizeof h);
            for (int t = 0; t < T; t++) {
                size_t row = (size_t)k * T + t, at = row * E + e;
                const float *bt = b + row * N, *ct = c + row * N;
                lanes d, xt, zt, dx, sum;
                take(d, delta + at, w);
                take(xt, x + at, w);
                take(zt, z + at, w);
                for (int i = 0; i < WIDE; i++) d[i] = softplus1(d[i]);
                for (int i = 0; i < WIDE; i++) dx[i] = d[i] * xt[i], sum[i] = skips[i] * xt[i];
                for (int n = 0; n < N; n++)
                    for (int i = 0; i < WIDE; i++) {
                        h[n][i] = exp1(d[i] * aw[n][i]) * h[n][i] + dx[i] * bt[n];
                        sum[i] += h[n][i] * ct[n];
                    }
                for (int i = 0; i < WIDE; i++) sum[i] *= zt[i] * sigmoid(zt[i]);
                memcpy(y + at, sum, sizeof(float) * w);
            }
        }
}

void scan_backward(int B, int T, int E, int N, const float *x, const float *delta, const float *a, const float *b,
                   const float *c, const float *skip, const float *z, const float *gy, float *gx, float *gdelta,
                   float *ga, float *gb, float *gc, float *gskip, float *gz) {
    size_t all = (size_t)T * N;
    lanes *hs = aligned_alloc(64, sizeof(lanes) * all * 4), *keeps = hs + all, *gbs = keeps + all, *gcs = gbs + all;
    lanes *soft = aligned_alloc(64, sizeof(lanes) * T * 2), *sums = soft + T;
    const lanes none = {0};
    for (int k = 0; k < B; k++) {
        memset(gbs, 0, sizeof(lanes) * all * 2);
        for (int e = 0; e < E; e += WIDE) {
            int w = E - e < WIDE ? E - e : WIDE;
            lanes aw[MOST], h[MOST], g[MOST], gaw[MOST], skips, gs = {0};
            turn(aw, a, e, w, N);
            take(skips, skip + e, w);
            memset(h, 0, sizeof h), memset(g, 0, sizeof g), memset(gaw, 0, sizeof gaw);
            for (int t = 0; t < T; t++) {
                size_t row = (size_t)k * T + t, at = row * E + e;
                const float *bt = b + row * N, *ct = c + row * N;
                lanes d, xt, dx, sum;
                take(d, delta + at, w);
                take(xt, x + at, w);
                for (int i = 0; i < WIDE; i++) d[i] = softplus1(d[i]);
                for (int i = 0; i < WIDE; i++) dx[i] = d[i] * xt[i], sum[i] = skips[i] * xt[i];
                for (int n = 0; n < N; n++) {
                    float *keep = keeps[t * N + n], *ht = hs[t * N + n];
                    for (int i = 0; i < WIDE; i++) {
                        keep[i] = exp1(d[i] * aw[n][i]);
                        h[n][i] = keep[i] * h[n][i] + dx[i] * bt[n];
                        ht[i] = h[n][i];
                        sum[i] += h[n][i] * ct[n];
                    }
                }
                memcpy(soft[t], d, sizeof d);
                memcpy(sums[t], sum, sizeof sum);
            }
            for (int t = T - 1; t >= 0; t--) {
                size_t row = (size_t)k * T + t, at = row * E + e;
                const float *bt = b + row * N, *ct = c + row * N, *d = soft[t];
                lanes xt, zt, raw, gyt, dx, gd = {0}, gdx = {0};
                take(xt, x + at, w);
                take(zt, z + at, w);
                take(raw, delta + at, w);
                take(gyt, gy + at, w);
                for (int i = 0; i < WIDE; i++) {
                    float s = sigmoid(zt[i]), v = gyt[i];
                    gyt[i] = v * zt[i] * s;
                    zt[i] = v * sums[t][i] * (s + zt[i] * s * (1.0f - s));
                    dx[i] = d[i] * xt[i];
                }
                memcpy(gz + at, zt, sizeof(float) * w);
                for (int n = 0; n < N; n++) {
                    const float *ht = hs[t * N + n], *keep = keeps[t * N + n], *before = t ? hs[(t - 1) * N + n] : none;
                    float *gbt = gbs[t * N + n], *gct = gcs[t * N + n];
                    for (int i = 0; i < WIDE; i++) {
                        float gn = g[n][i] + gyt[i] * ct[n], arg = gn * keep[i] * before[i];
                        gct[i] += gyt[i] * ht[i];
                        gd[i] += arg * aw[n][i];
                        gaw[n][i] += arg * d[i];
                        gdx[i] += gn * bt[n];
                        gbt[i] += gn * dx[i];
                        g[n][i] = gn * keep[i];
                    }
                }
                for (int i = 0; i < WIDE; i++) {
                    gs[i] += gyt[i] * xt[i];
                    gd[i] = (gd[i] + gdx[i] * xt[i]) * sigmoid(raw[i]);
                    gdx[i] = gdx[i] * d[i] + gyt[i] * skips[i];
                }
                memcpy(gx + at, gdx, sizeof(float) * w);
                memcpy(gdelta + at, gd, sizeof(float) * w);
            }
            for (int i = 0; i < w; i++) {
                for (int n = 0; n < N; n++) ga[((size_t)k * E + e + i) * N + n] = gaw[n][i];
                gskip[(size_t)k * E + e + i] = gs[i];
            }
        }
        for (size_t j = 0; j < all; j++) {
            float sb = 0, sc = 0;
            for (int i = 0; i < WIDE; i++) sb += gbs[j][i], sc += gcs[j][i];
            gb[k * all + j] = sb;
            gc[k * all + j] = sc;
        }
    }
    free(hs);
    free(soft);
}

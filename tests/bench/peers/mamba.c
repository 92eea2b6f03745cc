// Mamba decoding in plain loops: what a careful C programmer gets from the compiler alone.
//
//   cc -Ofast -march=native -fopenmp -o mamba mamba.c -lm
//   ./mamba WEIGHTS LAYERS D VOCAB TOKEN…
//
// WEIGHTS holds 32-bit floats, the tensors one after another: the embedding (VOCAB, D), which is the head as well; of each
// layer norm (D), in_proj (2E, D), conv1d (E, K), its bias (E), x_proj (R + 2N, E), dt_proj (E, R), its bias (E), A_log
// (E, N), D (E), out_proj (D, E); the last norm (D). E = 2 D, R = D / 16, N = 16, K = 4.
//
// The tokens are taken in turn from a fresh state; the scores after the last are printed, as JSON. Then each line
// `THREADS decode SECONDS` or `THREADS read SECONDS` is answered with the median milliseconds of a token, or of reading
// every weight once.
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { N = 16, K = 4 };

typedef struct {
  const float *norm, *in_proj, *conv, *conv_bias, *x_proj, *dt_proj, *dt_bias, *a_log, *d, *out_proj;
  float *a;          // (E, N), -exp(A_log)
  float *tail, *h;   // state: (E, K), newest last, and (E, N)
} Layer;

typedef struct {
  int layers, dim, e, r, vocab;
  size_t count;      // weights
  const float *weights, *embedding, *norm_f;
  Layer *layer;
  float *x, *normed, *xz, *u, *dbc, *delta, *y, *scores;
} Mamba;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec * 1e-9;
}

// Zeros, in large pages where there are any.
static float *floats(size_t n) {
  size_t bytes = (n * 4 + (2u << 20) - 1) / (2u << 20) * (2u << 20);
  float *p = aligned_alloc(2u << 20, bytes);
  if (!p) exit((fprintf(stderr, "no memory for %zu bytes\n", bytes), 1));
  madvise(p, bytes, MADV_HUGEPAGE);
  return memset(p, 0, bytes);
}

// y = W x, W (rows, columns).
static void product(float *y, const float *w, const float *x, int rows, int columns) {
  #pragma omp parallel for schedule(static)
  for (int i = 0; i < rows; i++) {
    float sum = 0;
    for (int j = 0; j < columns; j++) sum += w[(size_t)i * columns + j] * x[j];
    y[i] = sum;
  }
}

static void rms_norm(float *y, const float *x, const float *w, int n) {
  float sum = 0;
  for (int i = 0; i < n; i++) sum += x[i] * x[i];
  const float scale = 1 / sqrtf(sum / n + 1e-5f);
  for (int i = 0; i < n; i++) y[i] = x[i] * scale * w[i];
}

static float silu(float x) { return x / (1 + expf(-x)); }

static void mix(Mamba *m, Layer *l) {
  const int e = m->e, r = m->r;
  product(m->xz, l->in_proj, m->normed, 2 * e, m->dim);
  for (int i = 0; i < e; i++) {
    float *tail = l->tail + i * K, sum = l->conv_bias[i];
    for (int j = 0; j + 1 < K; j++) tail[j] = tail[j + 1];
    tail[K - 1] = m->xz[i];
    for (int j = 0; j < K; j++) sum += tail[j] * l->conv[i * K + j];
    m->u[i] = silu(sum);
  }
  product(m->dbc, l->x_proj, m->u, r + 2 * N, e);
  product(m->delta, l->dt_proj, m->dbc, e, r);
  const float *b = m->dbc + r, *c = b + N;
  #pragma omp parallel for schedule(static)
  for (int i = 0; i < e; i++) {
    const float v = m->delta[i] + l->dt_bias[i], delta = v > 20 ? v : log1pf(expf(v)), u = m->u[i];
    float *h = l->h + i * N, sum = 0;
    for (int n = 0; n < N; n++) {
      h[n] = expf(delta * l->a[i * N + n]) * h[n] + delta * u * b[n];
      sum += h[n] * c[n];
    }
    m->y[i] = (sum + l->d[i] * u) * silu(m->xz[e + i]);
  }
  product(m->normed, l->out_proj, m->y, m->dim, e);
}

static void step(Mamba *m, int token) {
  memcpy(m->x, m->embedding + (size_t)token * m->dim, m->dim * sizeof *m->x);
  for (int i = 0; i < m->layers; i++) {
    rms_norm(m->normed, m->x, m->layer[i].norm, m->dim);
    mix(m, &m->layer[i]);
    for (int j = 0; j < m->dim; j++) m->x[j] += m->normed[j];
  }
  rms_norm(m->normed, m->x, m->norm_f, m->dim);
  product(m->scores, m->embedding, m->normed, m->vocab, m->dim);
}

static const float *take(Mamba *m, size_t n) {
  const float *at = m->weights + m->count;
  m->count += n;
  return at;
}

static void open_weights(Mamba *m, const char *path) {
  FILE *f = fopen(path, "rb");
  if (!f || fseek(f, 0, SEEK_END)) exit((perror(path), 1));
  const size_t n = ftell(f) / 4;
  float *all = floats(n);
  rewind(f);
  if (fread(all, 4, n, f) != n) exit((perror(path), 1));
  fclose(f);
  m->weights = all;
  const size_t d = m->dim, e = m->e, r = m->r;
  m->embedding = take(m, m->vocab * d);
  m->layer = calloc(m->layers, sizeof *m->layer);
  for (Layer *l = m->layer; l < m->layer + m->layers; l++) {
    l->norm = take(m, d), l->in_proj = take(m, 2 * e * d), l->conv = take(m, e * K), l->conv_bias = take(m, e);
    l->x_proj = take(m, (r + 2 * N) * e), l->dt_proj = take(m, e * r), l->dt_bias = take(m, e), l->a_log = take(m, e * N);
    l->d = take(m, e), l->out_proj = take(m, d * e);
    l->a = floats(e * N), l->tail = floats(e * K), l->h = floats(e * N);
    for (size_t i = 0; i < e * N; i++) l->a[i] = -expf(l->a_log[i]);
  }
  m->norm_f = take(m, d);
  if (m->count != n) exit((fprintf(stderr, "%s: expected %zu values, got %zu\n", path, m->count, n), 1));
}

// The sum of all weights, which nobody wants, but which needs each of them.
static float sum_all(const Mamba *m) {
  float sum = 0;
  #pragma omp parallel for schedule(static) reduction(+ : sum)
  for (size_t i = 0; i < m->count / 64; i++)
    for (int j = 0; j < 64; j++) sum += m->weights[i * 64 + j];
  return sum;
}

static int ascending(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

int main(int argc, char **argv) {
  if (argc < 6) return fprintf(stderr, "%s WEIGHTS LAYERS D VOCAB TOKEN...\n", argv[0]), 2;
  Mamba m = {.layers = atoi(argv[2]), .dim = atoi(argv[3]), .vocab = atoi(argv[4])};
  m.e = 2 * m.dim, m.r = m.dim / 16;
  open_weights(&m, argv[1]);
  m.x = floats(m.dim), m.normed = floats(m.dim), m.xz = floats(2 * m.e), m.u = floats(m.e), m.y = floats(m.e);
  m.dbc = floats(m.r + 2 * N), m.delta = floats(m.e), m.scores = floats(m.vocab);
  for (int i = 5; i < argc; i++) step(&m, atoi(argv[i]));
  printf("{\"output\": [");
  for (int i = 0; i < m.vocab; i++) printf("%s%.9g", i ? ", " : "", m.scores[i]);
  printf("]}\n");
  fflush(stdout);
  enum { MOST = 100000 };
  static double took[MOST];
  char what[16];
  double seconds;
  int threads;
  volatile float sink;
  while (scanf("%d %15s %lf", &threads, what, &seconds) == 3) {
    omp_set_num_threads(threads);
    int count = 0;
    const double start = now();
    while (!count || (count < MOST && now() - start < seconds)) {
      const double begin = now();
      if (*what == 'r') sink = sum_all(&m);
      else step(&m, atoi(argv[5]));
      took[count++] = now() - begin;
    }
    (void)sink;
    qsort(took, count, sizeof *took, ascending);
    printf("{\"milliseconds\": %.6f}\n", took[count / 2] * 1e3);
    fflush(stdout);
  }
}

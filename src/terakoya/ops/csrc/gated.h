/* What stands around recurrences and would cost more passes over memory than they do: gates, norms, short filters. */
#ifndef TK_GATED_H
#define TK_GATED_H
#include "recur.h"

enum { SPAN = 64 }; /* tokens of a filter's block */

INLINE vf root(vf x) {
#if defined(__AVX512F__)
  return (vf)_mm512_sqrt_ps((__m512)x);
#else
  for (int i = 0; i < W; i++) x[i] = sqrtf(x[i]);
  return x;
#endif
}
/* 1 - e^x for x <= 0: small ones by the series, so that they keep their digits. */
INLINE vf rest(vf x) {
  vf p = muladd(x, all(1.0f / 8), all(1.0f));
  for (int i = 7; i > 1; i--) p = muladd(x * all(1.0f / (float)i), p, all(1.0f));
  return pick(x > all(-0.35f), -x * p, all(1.0f) - exponential(x));
}
/* gelu by tanh (Hendrycks 2016), and its slope. */
INLINE vf bend(vf x, vf *slope) {
  const vf c = all(0.7978845608f), q = all(0.044715f), half = all(0.5f), one = all(1.0f);
  vf t = tangent(c * x * muladd(q * x, x, one));
  *slope = half * (one + t) + half * x * (one - t * t) * c * muladd(all(3.0f) * q * x, x, one);
  return half * x * (one + t);
}

/* RetNet: rows x / rms(x) * silu(gate). in x, gate (R, V), eps (1); out y (R, V). channels: R, states: V. */
INLINE vf shrink(const float *x, int32_t V, float eps) {
  vf sum = zero();
  for (int32_t j = 0; j < V; j += W) {
    vf a = take(x + j, V - j);
    sum = muladd(a, a, sum);
  }
  return all(1.0f / sqrtf(total(sum) / (float)V + eps));
}
static void normed(const tk_recur *r, int32_t first, int32_t last, int32_t thread, vf *scratch) {
  (void)thread, (void)scratch;
  const int32_t V = r->states;
  for (int64_t row = (int64_t)first * W; row < (int64_t)last * W && row < r->channels; row++) {
    const float *x = r->in[0] + row * V, *gate = r->in[1] + row * V;
    const vf s = shrink(x, V, *r->in[2]);
    for (int32_t j = 0; j < V; j += W) {
      vf g = take(gate + j, V - j);
      put(r->out[0] + row * V + j, take(x + j, V - j) * s * g * sigmoid(g), V - j);
    }
  }
}
/* in as before, gy (R, V); out gx, ggate (R, V). */
static void normed_back(const tk_recur *r, int32_t first, int32_t last, int32_t thread, vf *scratch) {
  (void)thread, (void)scratch;
  const int32_t V = r->states;
  for (int64_t row = (int64_t)first * W; row < (int64_t)last * W && row < r->channels; row++) {
    const float *x = r->in[0] + row * V, *gate = r->in[1] + row * V, *gy = r->in[3] + row * V;
    float *gx = r->out[0] + row * V, *ggate = r->out[1] + row * V;
    const vf s = shrink(x, V, *r->in[2]);
    vf along = zero();
    for (int32_t j = 0; j < V; j += W) {
      vf g = take(gate + j, V - j), y = take(gy + j, V - j), n = take(x + j, V - j) * s, on = sigmoid(g);
      vf slope = y * g * on;
      along = muladd(slope, n, along);
      put(gx + j, slope, V - j);
      put(ggate + j, y * n * on * muladd(g, all(1.0f) - on, all(1.0f)), V - j);
    }
    const vf back = all(total(along) / (float)V);
    for (int32_t j = 0; j < V; j += W) {
      vf n = take(x + j, V - j) * s;
      put(gx + j, s * (take(gx + j, V - j) - n * back), V - j);
    }
  }
}

/* Griffin: i, k = sigmoid(take), sigmoid(keep), a = e^(k fall), h <- a h + sqrt(1 - a^2) i u, y = h gelu(gate); the
 * first token of a fresh sequence comes in whole. in u, take, keep, gate (T, D), fall (D) <= 0, fresh (N), start
 * (N, D); out y, h (T, D), last (N, D). */
static void rglru(const tk_recur *r, int32_t first, int32_t last, int32_t thread, vf *h) {
  (void)thread;
  const int64_t D = r->channels;
  for (int32_t n = 0; n < r->sequences; n++) {
    for (int32_t g = first; g < last; g++) h[g - first] = take(r->in[6] + n * D + g * W, (int32_t)D - g * W);
    for (int64_t t = r->cu[n]; t < r->cu[n + 1]; t++)
      for (int32_t g = first; g < last; g++) {
        const int32_t left = (int32_t)D - g * W;
        const int64_t at = t * D + g * W;
        vf log_a = sigmoid(take(r->in[2] + at, left)) * take(r->in[4] + g * W, left), slope;
        vf room = t == r->cu[n] && r->in[5][n] != 0 ? all(1.0f) : root(rest(log_a + log_a));
        vf in = sigmoid(take(r->in[1] + at, left)) * take(r->in[0] + at, left);
        vf now = muladd(exponential(log_a), h[g - first], room * in);
        h[g - first] = now;
        put(r->out[1] + at, now, left);
        put(r->out[0] + at, now * bend(take(r->in[3] + at, left), &slope), left);
      }
    for (int32_t g = first; g < last; g++) put(r->out[2] + n * D + g * W, h[g - first], (int32_t)D - g * W);
  }
}
/* in as before, h, gy (T, D), glast (N, D); out gu, gtake, gkeep, ggate (T, D), gfall (D), gstart (N, D). */
static void rglru_back(const tk_recur *r, int32_t first, int32_t last, int32_t thread, vf *slope) {
  (void)thread;
  const int64_t D = r->channels;
  const vf one = all(1.0f);
  vf *gfall = slope + (last - first);
  clear(gfall, last - first);
  for (int32_t n = r->sequences - 1; n >= 0; n--) {
    for (int32_t g = first; g < last; g++) slope[g - first] = take(r->in[9] + n * D + g * W, (int32_t)D - g * W);
    for (int64_t t = r->cu[n + 1] - 1; t >= r->cu[n]; t--)
      for (int32_t g = first; g < last; g++) {
        const int32_t left = (int32_t)D - g * W, begins = t == r->cu[n];
        const int64_t at = t * D + g * W;
        vf u = take(r->in[0] + at, left), i = sigmoid(take(r->in[1] + at, left));
        vf k = sigmoid(take(r->in[2] + at, left)), fall = take(r->in[4] + g * W, left);
        vf log_a = k * fall, a = exponential(log_a);
        vf before = take(begins ? r->in[6] + n * D + g * W : r->in[7] + at - D, left), bent;
        vf gy = take(r->in[8] + at, left), y = bend(take(r->in[3] + at, left), &bent);
        put(r->out[3] + at, gy * take(r->in[7] + at, left) * bent, left);
        vf d = muladd(gy, y, slope[g - first]), by_a = d * before * a, room = one;
        if (!begins || r->in[5][n] == 0) {
          room = most(root(rest(log_a + log_a)), all(1e-12f));
          by_a = by_a - d * u * i * a * a / room;
        }
        put(r->out[0] + at, d * room * i, left);
        put(r->out[1] + at, d * room * u * i * (one - i), left);
        put(r->out[2] + at, by_a * fall * k * (one - k), left);
        gfall[g - first] = muladd(by_a, k, gfall[g - first]);
        slope[g - first] = d * a;
      }
    for (int32_t g = first; g < last; g++) put(r->out[5] + n * D + g * W, slope[g - first], (int32_t)D - g * W);
  }
  for (int32_t g = first; g < last; g++) put(r->out[4] + g * W, gfall[g - first], (int32_t)D - g * W);
}

/* A short filter a channel: in x (T, D), weight (D, S), bias (D) or NULL, tail (N, S - 1, D); out y (T, D). Blocks of
 * time, and channels inside: what a group of channels leaves of a line, the next finds in the cache. */
INLINE void lay_out(vf *rows, const tk_recur *r, int32_t n, int32_t g, int64_t from, int64_t count) {
  const int64_t D = r->channels, before = r->states - 1, begin = r->cu[n];
  const int32_t left = (int32_t)D - g * W;
  for (int64_t i = 0, t = from - before; t < from + count; i++, t++)
    rows[i] = take(t < begin ? r->in[3] + ((n + 1) * before + t - begin) * D + g * W : r->in[0] + t * D + g * W, left);
}
static void filter(const tk_recur *r, int32_t first, int32_t last, int32_t thread, vf *weight) {
  (void)thread;
  const int64_t D = r->channels;
  const int32_t S = r->states;
  vf *rows = weight + (int64_t)(last - first) * S;
  for (int32_t g = first; g < last; g++)
    turn(weight + (g - first) * S, r->in[1] + (int64_t)g * W * S, S, (int32_t)D - g * W);
  for (int32_t n = 0; n < r->sequences; n++)
    for (int64_t from = r->cu[n]; from < r->cu[n + 1]; from += SPAN) {
      const int64_t count = r->cu[n + 1] - from < SPAN ? r->cu[n + 1] - from : SPAN;
      for (int32_t g = first; g < last; g++) {
        const int32_t left = (int32_t)D - g * W;
        const vf *w = weight + (g - first) * S, bias = r->in[2] ? take(r->in[2] + g * W, left) : zero();
        lay_out(rows, r, n, g, from, count);
        for (int64_t t = 0; t < count; t++) {
          vf y = bias;
          for (int32_t j = 0; j < S; j++) y = muladd(rows[t + j], w[j], y);
          put(r->out[0] + (from + t) * D + g * W, y, left);
        }
      }
    }
}

/* in as before, gy (T, D); out gx (T, D), gweight (D, S), gbias (D), gtail (N, S - 1, D). */
static void filter_back(const tk_recur *r, int32_t first, int32_t last, int32_t thread, vf *weight) {
  (void)thread;
  const int64_t D = r->channels;
  const int32_t S = r->states, mine = last - first;
  vf *gweight = weight + (int64_t)mine * S, *gbias = gweight + (int64_t)mine * S;
  vf *rows = gbias + mine, *slopes = rows + S - 1 + SPAN;
  clear(gweight, (int64_t)mine * (S + 1));
  for (int32_t g = first; g < last; g++)
    turn(weight + (g - first) * S, r->in[1] + (int64_t)g * W * S, S, (int32_t)D - g * W);
  for (int32_t n = 0; n < r->sequences; n++)
    for (int64_t begin = r->cu[n], end = r->cu[n + 1], from = begin; from < end; from += SPAN) {
      const int64_t count = end - from < SPAN ? end - from : SPAN;
      for (int32_t g = first; g < last; g++) {
        const int32_t left = (int32_t)D - g * W;
        const vf *w = weight + (g - first) * S;
        vf *gw = gweight + (g - first) * S;
        lay_out(rows, r, n, g, from, count);
        for (int64_t i = 0; i < count + S - 1; i++) /* of tokens from, from + 1, …; none after the last */
          slopes[i] = from + i < end ? take(r->in[4] + (from + i) * D + g * W, left) : zero();
        for (int64_t t = 0; t < count; t++) {
          gbias[g - first] = gbias[g - first] + slopes[t];
          for (int32_t j = 0; j < S; j++) gw[j] = muladd(slopes[t], rows[t + j], gw[j]);
        }
        for (int64_t t = 0; t < count; t++) { /* row t is under weight j of token t + S - 1 - j */
          vf gx = zero();
          for (int32_t j = 0; j < S; j++) gx = muladd(slopes[t + S - 1 - j], w[j], gx);
          put(r->out[0] + (from + t) * D + g * W, gx, left);
        }
        for (int32_t i = 0; from == begin && i < S - 1; i++) {
          vf gx = zero();
          for (int32_t j = 0; j <= i; j++) gx = muladd(slopes[i - j], w[j], gx);
          put(r->out[3] + ((int64_t)n * (S - 1) + i) * D + g * W, gx, left);
        }
      }
    }
  for (int32_t g = first; g < last; g++) {
    turn_back(r->out[1] + (int64_t)g * W * S, gweight + (g - first) * S, S, (int32_t)D - g * W);
    put(r->out[2] + g * W, gbias[g - first], (int32_t)D - g * W);
  }
}

static int32_t run_normed(const tk_recur *r) { return share(r, normed, groups(r), 0, 0); }
static int32_t run_normed_back(const tk_recur *r) { return share(r, normed_back, groups(r), 0, 0); }
static int32_t run_rglru(const tk_recur *r) { return share(r, rglru, groups(r), 1, 0); }
static int32_t run_rglru_back(const tk_recur *r) { return share(r, rglru_back, groups(r), 2, 0); }
static int32_t run_filter(const tk_recur *r) { return share(r, filter, groups(r), r->states, r->states + SPAN); }
static int32_t run_filter_back(const tk_recur *r) {
  return share(r, filter_back, groups(r), 2 * r->states + 1, 2 * (r->states + SPAN));
}
#endif

/* Memories that are matrices, S <- diag(e) S + b (a^T S) + k v^T, y = S^T r: linear attention, RetNet, Mamba-2, delta
 * rules, RWKV-7. Columns of S do not meet, so four vectors of them at most go through all the time together.
 *
 * in r, e, k (T, H, K), v (T, H, V), a, b (T, H, K) or NULL, start (N, H, K, V); out y (T, H, V), last (N, H, K, V),
 * kept (blocks, H, K, V to a multiple of 16) or NULL. channels: H, states: K, width: V. */
#ifndef TK_MATRIX_H
#define TK_MATRIX_H
#include "recur.h"

enum { TILE = 4 }; /* vectors of columns */

INLINE int32_t vectors(const tk_recur *r) { return (r->width + W - 1) / W; }
INLINE int32_t tiles(const tk_recur *r) { return (vectors(r) + TILE - 1) / TILE; }

INLINE void take_rows(vf *to, const float *from, int32_t K, int32_t V, int32_t at, const int32_t J) {
  for (int32_t k = 0; k < K; k++)
    for (int32_t j = 0; j < J; j++) to[k * J + j] = take(from + (int64_t)k * V + at + j * W, V - at - j * W);
}
INLINE void put_rows(float *to, const vf *from, int32_t K, int32_t V, int32_t at, const int32_t J) {
  for (int32_t k = 0; k < K; k++)
    for (int32_t j = 0; j < J; j++) put(to + (int64_t)k * V + at + j * W, from[k * J + j], V - at - j * W);
}
/* One token: `to` may be `s`. Returns a^T S in `read`. */
INLINE void advance(vf *to, const vf *s, vf *read, const float *e, const float *k, const vf *v, const float *a,
                    const float *b, int32_t K, const int32_t J) {
  for (int32_t j = 0; j < J; j++) read[j] = zero();
  if (a)
    for (int32_t i = 0; i < K; i++)
      for (int32_t j = 0; j < J; j++) read[j] = muladd(all(a[i]), s[i * J + j], read[j]);
  for (int32_t i = 0; i < K; i++)
    for (int32_t j = 0; j < J; j++) {
      vf now = muladd(all(k[i]), v[j], all(e[i]) * s[i * J + j]);
      to[i * J + j] = a ? muladd(all(b[i]), read[j], now) : now;
    }
}

INLINE void forward(const tk_recur *r, int32_t h, int32_t at, vf *s, const int32_t J) {
  const int64_t H = r->channels, K = r->states, V = r->width, P = (int64_t)vectors(r) * W;
  int64_t block = 0;
  for (int32_t n = 0; n < r->sequences; n++) {
    take_rows(s, r->in[6] + (n * H + h) * K * V, (int32_t)K, (int32_t)V, at, J);
    for (int64_t t = r->cu[n]; t < r->cu[n + 1]; t++) {
      const int64_t row = (t * H + h) * K;
      vf v[TILE], y[TILE], read[TILE];
      if (r->out[2] && (t - r->cu[n]) % BLOCK == 0)
        put_rows(r->out[2] + (block++ * H + h) * K * P, s, (int32_t)K, (int32_t)P, at, J);
      for (int32_t j = 0; j < J; j++)
        v[j] = take(r->in[3] + (t * H + h) * V + at + j * W, (int32_t)V - at - j * W), y[j] = zero();
      advance(s, s, read, r->in[1] + row, r->in[2] + row, v, r->in[4] ? r->in[4] + row : NULL,
              r->in[5] ? r->in[5] + row : NULL, (int32_t)K, J);
      for (int32_t i = 0; i < K; i++)
        for (int32_t j = 0; j < J; j++) y[j] = muladd(all(r->in[0][row + i]), s[i * J + j], y[j]);
      for (int32_t j = 0; j < J; j++) put(r->out[0] + (t * H + h) * V + at + j * W, y[j], (int32_t)V - at - j * W);
    }
    put_rows(r->out[1] + (n * H + h) * K * V, s, (int32_t)K, (int32_t)V, at, J);
  }
}

/* The sums over the lanes of sixteen vectors, whose rows they are: to[0 … 15]. */
INLINE void across(float *to, vf *x, int32_t left) {
#if defined(__clang__) || __GNUC__ >= 12
  for (int32_t i = 0; i < 8; i++)
    x[i] = __builtin_shufflevector(x[2 * i], x[2 * i + 1],
                         0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
           __builtin_shufflevector(x[2 * i], x[2 * i + 1],
                                   1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
  for (int32_t i = 0; i < 4; i++)
    x[i] = __builtin_shufflevector(x[2 * i], x[2 * i + 1],
                         0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
           __builtin_shufflevector(x[2 * i], x[2 * i + 1],
                                   2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  for (int32_t i = 0; i < 2; i++)
    x[i] = __builtin_shufflevector(x[2 * i], x[2 * i + 1],
                         0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
           __builtin_shufflevector(x[2 * i], x[2 * i + 1],
                                   4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
  for (int32_t i = 0; i < 1; i++)
    x[i] = __builtin_shufflevector(x[2 * i], x[2 * i + 1],
                         0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           __builtin_shufflevector(x[2 * i], x[2 * i + 1],
                                   8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  put(to, x[0], left);
#else
  for (int32_t i = 0; i < W && i < left; i++) to[i] = total(x[i]);
#endif
}

/* in as before with kept for start, then gy (T, H, V), glast (N, H, K, V); out gr, ge or NULL, gk (tiles, T, H, K),
 * gv (T, H, V), ga, gb (tiles, T, H, K), gstart (N, H, K, V). */
INLINE void back(const tk_recur *r, int32_t h, int32_t at, int64_t tile, vf *g, const int32_t J) {
  const int64_t H = r->channels, K = r->states, V = r->width, P = (int64_t)vectors(r) * W, T = r->cu[r->sequences];
  const int32_t rows = (int32_t)K;
  vf *s = g + K * J, *read = s + (BLOCK + 1) * K * J;
  int64_t block = blocks_of(r);
  for (int32_t n = r->sequences - 1; n >= 0; n--) {
    const int64_t begin = r->cu[n], end = r->cu[n + 1];
    take_rows(g, r->in[8] + (n * H + h) * K * V, rows, (int32_t)V, at, J);
    for (int64_t from = begin + (end - begin - 1) / BLOCK * BLOCK; from >= begin; from -= BLOCK) {
      const int32_t count = (int32_t)(end - from < BLOCK ? end - from : BLOCK);
      vf v[TILE], gy[TILE], gv[TILE], slope[TILE];
      take_rows(s, r->in[6] + (--block * H + h) * K * P, rows, (int32_t)P, at, J);
      for (int32_t i = 0; i < count; i++) {
        const int64_t row = ((from + i) * H + h) * K;
        for (int32_t j = 0; j < J; j++)
          v[j] = take(r->in[3] + ((from + i) * H + h) * V + at + j * W, (int32_t)V - at - j * W);
        advance(s + (i + 1) * K * J, s + i * K * J, read + i * TILE, r->in[1] + row, r->in[2] + row, v,
                r->in[4] ? r->in[4] + row : NULL, r->in[5] ? r->in[5] + row : NULL, rows, J);
      }
      for (int32_t i = count - 1; i >= 0; i--) {
        const int64_t row = ((from + i) * H + h) * K, here = tile * T * H * K + row;
        const vf *now = s + (i + 1) * K * J, *before = s + i * K * J, *seen = read + i * TILE;
        const float *q = r->in[0] + row, *e = r->in[1] + row, *k = r->in[2] + row;
        const float *a = r->in[4] ? r->in[4] + row : NULL, *b = r->in[5] ? r->in[5] + row : NULL;
        for (int32_t j = 0; j < J; j++) {
          v[j] = take(r->in[3] + ((from + i) * H + h) * V + at + j * W, (int32_t)V - at - j * W);
          gy[j] = take(r->in[7] + ((from + i) * H + h) * V + at + j * W, (int32_t)V - at - j * W);
          gv[j] = slope[j] = zero();
        }
        for (int32_t at_row = 0; at_row < rows; at_row += W) {
          vf by_r[W] = {0}, by_e[W] = {0}, by_k[W] = {0}, by_b[W] = {0};
          const int32_t left = rows - at_row, few = left < W ? left : W;
          for (int32_t c = 0; c < few; c++) {
            const int32_t m = at_row + c;
            vf *gm = g + m * J;
            for (int32_t j = 0; j < J; j++) {
              by_r[c] = muladd(now[m * J + j], gy[j], by_r[c]);
              vf d = muladd(all(q[m]), gy[j], gm[j]);
              gv[j] = muladd(all(k[m]), d, gv[j]);
              by_k[c] = muladd(d, v[j], by_k[c]);
              by_e[c] = muladd(d, before[m * J + j], by_e[c]);
              if (b) slope[j] = muladd(all(b[m]), d, slope[j]), by_b[c] = muladd(d, seen[j], by_b[c]);
              gm[j] = all(e[m]) * d;
            }
          }
          across(r->out[0] + here + at_row, by_r, left);
          across(r->out[2] + here + at_row, by_k, left);
          if (r->out[1]) across(r->out[1] + here + at_row, by_e, left);
          if (b) across(r->out[5] + here + at_row, by_b, left);
        }
        for (int32_t at_row = 0; b && at_row < rows; at_row += W) {
          vf by_a[W] = {0};
          const int32_t left = rows - at_row, few = left < W ? left : W;
          for (int32_t c = 0; c < few; c++)
            for (int32_t j = 0; j < J; j++) {
              const int32_t m = (at_row + c) * J + j;
              by_a[c] = muladd(before[m], slope[j], by_a[c]);
              g[m] = muladd(all(a[at_row + c]), slope[j], g[m]);
            }
          across(r->out[4] + here + at_row, by_a, left);
        }
        for (int32_t j = 0; j < J; j++)
          put(r->out[3] + ((from + i) * H + h) * V + at + j * W, gv[j], (int32_t)V - at - j * W);
      }
    }
    put_rows(r->out[6] + (n * H + h) * K * V, g, rows, (int32_t)V, at, J);
  }
}

static void matrix(const tk_recur *r, int32_t first, int32_t last, int32_t thread, vf *s) {
  (void)thread;
  for (int32_t i = first; i < last; i++) {
    const int32_t h = i / tiles(r), at = i % tiles(r) * TILE, left = vectors(r) - at;
    if (left >= 4) forward(r, h, at * W, s, 4);
    else if (left == 3) forward(r, h, at * W, s, 3);
    else if (left == 2) forward(r, h, at * W, s, 2);
    else forward(r, h, at * W, s, 1);
  }
}
static void matrix_back(const tk_recur *r, int32_t first, int32_t last, int32_t thread, vf *s) {
  (void)thread;
  for (int32_t i = first; i < last; i++) {
    const int32_t tile = i % tiles(r), h = i / tiles(r), at = tile * TILE, left = vectors(r) - at;
    if (left >= 4) back(r, h, at * W, tile, s, 4);
    else if (left == 3) back(r, h, at * W, tile, s, 3);
    else if (left == 2) back(r, h, at * W, tile, s, 2);
    else back(r, h, at * W, tile, s, 1);
  }
}

static int32_t run_matrix(const tk_recur *r) {
  return share(r, matrix, r->channels * tiles(r), 0, (int64_t)r->states * TILE);
}
static int32_t run_matrix_back(const tk_recur *r) {
  return share(r, matrix_back, r->channels * tiles(r), 0, ((int64_t)r->states * (BLOCK + 2) + BLOCK) * TILE);
}
#endif

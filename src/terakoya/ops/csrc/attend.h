/* Attention of a few queries to a span of positions, sixteen at a time: lanes are positions for the scores and
 * channels for the values, so nothing is added across lanes but the weights. */
#ifndef TK_ATTEND_H
#define TK_ATTEND_H
#include "kernels.h"
#include "vec.h"

enum { PAGES_AHEAD = 3 }; /* as far as memory is away while one page is worked on */

/* Sixteen numbers of a memory of floats or halves. `next`: how far away those that are wanted soon are. */
INLINE vf held(const int half, const void *p, int64_t at, int64_t next) {
  __builtin_prefetch((const char *)p + (at + next) * (half ? 2 : 4));
  return half ? halves((const uint16_t *)p + at) : load((const float *)p + at);
}
INLINE int64_t page_of(const tk_look *a, int32_t block) { return a->pages[block]; }
INLINE int64_t page_after(const tk_look *a, int32_t block) {
  int32_t last = (a->to - 1) / TK_PAGE;
  return a->pages[block + PAGES_AHEAD < last ? block + PAGES_AHEAD : last];
}

/* `M` blocks side by side: few queries alone would wait for their own sums. */
INLINE void scores_of(const int N, const int M, const int half, const tk_look *a, int32_t block, float (*s)[SPAN],
                      int32_t column) {
  int64_t k[2], next[2];
  vf sum[TILE][2];
  for (int m = 0; m < M; m++) {
    k[m] = page_of(a, block + m) * a->key_page;
    next[m] = page_after(a, block + m) * a->key_page - k[m];
    for (int r = 0; r < N; r++) sum[r][m] = zero();
  }
  for (int32_t i = 0; i < a->key_width; i++)
    for (int m = 0; m < M; m++) {
      vf v = held(half, a->k, k[m] + i * 16, next[m]);
      for (int r = 0; r < N; r++) sum[r][m] = muladd(v, all(a->q[r][i]), sum[r][m]);
    }
  for (int m = 0; m < M; m++)
    for (int r = 0; r < N; r++) store(s[r] + column + 16 * m, sum[r][m] * all(a->scale));
}

INLINE vf rounded_bfloat(vf x) {
  vi u = (vi)x;
  return (vf)((u + 0x7fff + (u >> 16 & 1)) & (int32_t)0xffff0000);
}

/* Add biases, cap, and hide what row r may not see. */
INLINE vf seen(const tk_look *a, int r, vf s, int32_t first) {
  const vi lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  vi pos = lanes + first;
  if (a->alibi == 1) s = s - all(a->slope[r]) * __builtin_convertvector(a->at[r] - pos, vf);
  if (a->alibi == 2) /* slope and scale are kept apart: the product is rounded before the scale */
    s = s + rounded_bfloat(all(a->slope[r]) * rounded_bfloat(__builtin_convertvector(pos, vf))) * all(a->bias[r][0]);
  if (a->distances) {
    float b[16];
    for (int i = 0; i < 16; i++) {
      int32_t gap = a->at[r] - first - i;
      b[i] = a->bias[r][gap < 0 ? 0 : gap < a->distances ? gap : a->distances - 1];
    }
    s = s + load(b);
  }
  if (a->cap > 0) s = all(a->cap) * tangent(s / all(a->cap));
  return pick((pos >= a->low[r]) & (pos < a->high[r]), s, all(-INFINITY));
}

INLINE void values_of(const int N, const int M, const int half, const tk_look *a, float (*p)[SPAN], int32_t count, int32_t column,
                      float (*out)[SPAN]) {
  vf sum[TILE][4];
  for (int r = 0; r < N; r++)
    for (int j = 0; j < M; j++) sum[r][j] = zero();
  for (int32_t first = 0; first < count; first += TK_PAGE) {
    int32_t block = (a->from + first) / TK_PAGE, here = count - first < TK_PAGE ? count - first : TK_PAGE;
    int64_t v = page_of(a, block) * a->value_page + column, next = page_after(a, block) * a->value_page + column - v;
    for (int32_t i = 0; i < here; i++, v += a->value_width)
      for (int j = 0; j < M; j++) {
        vf x = held(half, a->v, v + 16 * j, next);
        for (int r = 0; r < N; r++) sum[r][j] = muladd(x, all(p[r][first + i]), sum[r][j]);
      }
  }
  for (int r = 0; r < N; r++)
    for (int j = 0; j < M; j++) store(out[r] + 16 * j, sum[r][j]);
}

static void join(int32_t width, float *most_, float *weight, float *out, float most2, float weight2,
                 const float *out2) {
  if (most2 == -INFINITY) return;
  float top = *most_ > most2 ? *most_ : most2;
  vf old = exponential(all(*most_ - top)), new = exponential(all(most2 - top));
  *most_ = top;
  *weight = *weight * old[0] + weight2 * new[0];
  for (int32_t i = 0; i < width; i += 16) store(out + i, load(out + i) * old + load(out2 + i) * new);
}

INLINE void attend_rows(const int N, const int half, tk_look *a) {
  float s[TILE][SPAN], top[TILE], sum[TILE], part[TILE][SPAN];
  int32_t count = a->to - a->from, padded = (count + 15) / 16 * 16;
  int32_t first = 0;
  if (N <= 4)
    for (; first + 32 <= padded; first += 32) scores_of(N, 2, half, a, (a->from + first) / 16, s, first);
  for (; first < padded; first += 16) scores_of(N, 1, half, a, (a->from + first) / 16, s, first);
  for (int r = 0; r < a->rows; r++) {
    vf m = all(-INFINITY), w = zero();
    for (int32_t i = 0; i < padded; i += 16) {
      vf x = seen(a, r, load(s[r] + i), a->from + i);
      store(s[r] + i, x);
      m = most(m, x);
    }
    top[r] = largest(m);
    float from = top[r] == -INFINITY ? 0 : top[r];
    for (int32_t i = 0; i < padded; i += 16) {
      vf x = exponential(load(s[r] + i) - all(from));
      store(s[r] + i, x);
      w = w + x;
    }
    sum[r] = total(w);
  }
  for (int32_t c = 0; c < a->value_width;) {
    int32_t left = a->value_width - c, step = N <= 4 && left >= 64 ? 64 : left >= 32 ? 32 : 16;
    if (step == 64) values_of(N, N <= 4 ? 4 : 1, half, a, s, count, c, part);
    else if (step == 32) values_of(N, 2, half, a, s, count, c, part);
    else values_of(N, 1, half, a, s, count, c, part);
    for (int r = 0; r < a->rows; r++) {
      float m = a->most[r], w = a->weight[r]; /* the same for every slice of the values; kept after the last */
      join(step, &m, &w, a->out[r] + c, top[r], sum[r], part[r]);
      if (c + step >= a->value_width) a->most[r] = m, a->weight[r] = w;
    }
    c += step;
  }
}

INLINE void attend_in(const int half, tk_look *a) {
  switch (a->rows) {
    case 1: attend_rows(1, half, a); return;
    case 2: attend_rows(2, half, a); return;
    case 3: attend_rows(3, half, a); return;
    case 4: attend_rows(4, half, a); return;
    default: attend_rows(8, half, a);
  }
}

/* Sizes 5 to 7 repeat their first row up to 8. */
static void attend(tk_look *a) {
  for (int r = a->rows; r < TILE; r++) a->q[r] = a->q[0];
  if (a->half) attend_in(1, a);
  else attend_in(0, a);
}
#endif

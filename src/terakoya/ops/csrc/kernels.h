/* What each instruction set implements: one table of functions per compilation of kernels.c. */
#ifndef TK_KERNELS_H
#define TK_KERNELS_H
#include "terakoya.h"

/* Whether a layer of that format reads its input as it is, not in int8. */
static inline int32_t takes_floats(int32_t format) {
  return format == TK_F32 || format == TK_F16 || format == TK_B16;
}

enum { TILE = 8, SPAN = 128 }; /* rows taken together; positions whose attention is one partial result */

/* One line of input: floats, or int8 with one scale a group, and scale * sum. */
typedef struct {
  const float *x;
  const int8_t *q;
  const float *scale, *sum;
} tk_input;

/* Attention of up to TILE queries of one key head to positions [from, to), joined with what they saw before. */
typedef struct {
  const void *k, *v; /* of one head in page 0: k (K, 16), v (16, V), V a multiple of 16; floats, or halves */
  const int32_t *pages;
  int64_t key_page, value_page; /* numbers from page to page */
  int32_t half;
  int32_t from, to, key_width, value_width, rows, alibi, distances;
  float scale, cap;
  const float *q[TILE], *bias[TILE];
  float slope[TILE];
  int32_t at[TILE], low[TILE], high[TILE]; /* own position; sees [low, high) */
  float most[TILE], weight[TILE];          /* largest score, sum of weights */
  float *out[TILE];                        /* weighted sum of values (V) */
} tk_look;

typedef struct {
  const char *name;
  void (*quantise)(const float *x, int32_t k, int32_t first, int32_t last, int8_t *q, float *scale, float *sum);
  void (*dot[TK_FORMATS])(const void *block, int32_t k, int32_t rows, tk_input *in, float (*out)[16]);
  void (*norm)(float *y, const float *x, int32_t k, int32_t kind, float eps, const float *weight, const float *bias);
  void (*act)(float *y, const float *gate, const float *up, int32_t k, int32_t act);
  void (*cap)(float *y, int32_t k, float scale, float limit);
  void (*keep)(const float *key, int32_t k, const float *value, int32_t v, int32_t half, void *key_to, void *value_to);
  void (*attend)(tk_look *look);
  void (*join)(int32_t width, float *most, float *weight, float *out, float most2, float weight2, const float *out2);
  double (*read)(const void *data, int64_t bytes);
} tk_kernels;

extern const tk_kernels tk_portable, tk_avx2, tk_avx512, tk_vnni;
#endif

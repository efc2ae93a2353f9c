/* Linear layers, dense and by expert: inputs to int8, then blocks of 16 output rows taken in turn by the threads. */
#include <string.h>

#include "program.h"

/* Bytes of one packed block. */
static int64_t block_bytes(int32_t format, int32_t k) {
  int64_t g = (k + 31) / 32;
  switch (format) {
    case TK_F32: return (int64_t)k * 64;
    case TK_F16: case TK_B16: return (int64_t)k * 32;
    default: return tk_head_bytes(format, (int32_t)g) + g * tk_code_bytes(format);
  }
}

int64_t tk_packed_bytes(int32_t format, int32_t n, int32_t k) { return (n + 15) / 16 * block_bytes(format, k); }

/* By whole rows where the thread has just made them so, else by pieces of rows. */
static void quantise_rows(prog *p, const tk_instruction *i, int32_t t, int32_t rows) {
  int32_t g = (i->k + 31) / 32, a, b;
  int32_t wide = p->joined[i - p->code] == TK_BY_ROWS ? g : WIDE / 32, pieces = (g + wide - 1) / wide;
  my_part(p, t, rows * pieces, &a, &b);
  for (; a < b; a++) {
    int32_t row = a / pieces, first = a % pieces * wide;
    size_t base = (size_t)row * g;
    p->kernels->quantise(at(p, i->src, row, i->src_at), i->k, first, least_of(g, first + wide), p->q + base * 32,
                         p->scale + base, p->sum + base);
  }
}

static tk_input input_of(const prog *p, const tk_instruction *i, int32_t row) {
  size_t base = (size_t)row * ((i->k + 31) / 32);
  return (tk_input){at(p, i->src, row, i->src_at), p->q + base * 32, p->scale + base, p->sum + base};
}

/* y (count): what the instruction does with sums `a`. */
static void finish(const prog *p, const tk_instruction *i, float *y, const float *a, const float *bias, int32_t count) {
  float v[16];
  for (int32_t n = 0; n < count; n++) v[n] = (a[n] + (bias ? bias[n] : 0.0f)) * i->scale;
  if (i->flags & 2) p->kernels->act(v, v, NULL, count, i->act);
  if (i->flags & 1)
    for (int32_t n = 0; n < count; n++) y[n] += v[n];
  else
    memcpy(y, v, (size_t)count * 4);
}

/* Rows `row[0..rows)` (NULL: 0, 1, …) through output block `b` of one weight. */
static void block(prog *p, const tk_instruction *i, const void *weight, const float *bias, int32_t b, int32_t rows,
                  const int32_t *row, int32_t per_source) {
  const char *w = (const char *)weight + b * block_bytes(i->format, i->k);
  int32_t depth = takes_floats(i->format) ? i->k : (i->k + 31) / 32, count = least_of(16, i->n - b * 16);
  tk_input in[TILE];
  float out[TILE][16];
  for (int32_t r = 0; r < rows; r += TILE) {
    int32_t here = least_of(TILE, rows - r);
    for (int32_t j = 0; j < here; j++) in[j] = input_of(p, i, (row ? row[r + j] : r + j) / per_source);
    p->kernels->dot[i->format](w, depth, here, in, out);
    for (int32_t j = 0; j < here; j++)
      finish(p, i, at(p, i->dst, row ? row[r + j] : r + j, i->dst_at + b * 16), out[j], bias ? bias + b * 16 : NULL,
             count);
  }
}

/* Three quarters of the blocks are each thread's own, one stretch of memory; the rest goes to who comes first. */
static int32_t owned_of(const prog *p, int32_t blocks) { return p->threads > 1 ? blocks * 3 / 4 : blocks; }

tk_range tk_linear_soon(const prog *p, const tk_instruction *i, int32_t t) {
  enum { MOST = 256 << 10 }; /* bytes: it must stay in the second cache until it is read */
  int64_t bytes = block_bytes(i->format, i->k);
  int32_t a, b;
  my_part(p, t, owned_of(p, (i->n + 15) / 16), &a, &b);
  const char *first = (const char *)i->weight + a * bytes;
  bytes *= b - a;
  return (tk_range){first, first + (bytes < MOST ? bytes : MOST)};
}

void tk_linear(prog *p, const tk_instruction *i, int32_t t, atomic_int *next) {
  int32_t rows = rows_of(p, i->rows), blocks = (i->n + 15) / 16, a, b;
  int32_t owned = owned_of(p, blocks), step = most_of(1, (blocks - owned) / (p->threads * 2));
  if (!takes_floats(i->format)) {
    quantise_rows(p, i, t, rows);
    meet(p, t);
  }
  my_part(p, t, owned, &a, &b);
  for (; a < b; a++) block(p, i, i->weight, i->bias, a, rows, NULL, 1);
  while ((a = owned + atomic_fetch_add_explicit(next, step, memory_order_relaxed)) < blocks)
    for (b = least_of(blocks, a + step); a < b; a++) block(p, i, i->weight, i->bias, a, rows, NULL, 1);
}

/* The weights of the experts stand one after the other. */
void tk_experts(prog *p, const tk_instruction *i, int32_t t, atomic_int *next) {
  int32_t per_source = i->flags & 4 ? p->choices : 1, blocks = (i->n + 15) / 16;
  int64_t bytes = tk_packed_bytes(i->format, i->n, i->k);
  if (!takes_floats(i->format)) {
    quantise_rows(p, i, t, p->rows * p->choices / per_source);
    meet(p, t);
  }
  for (int32_t u; (u = atomic_fetch_add_explicit(next, 1, memory_order_relaxed)) < blocks * p->experts;) {
    int32_t e = u / blocks, first = p->first[e], count = p->first[e + 1] - first;
    const float *bias = i->bias ? (const float *)i->bias + (int64_t)e * i->n : NULL;
    if (count) block(p, i, (const char *)i->weight + e * bytes, bias, u % blocks, count, p->member + first, per_source);
  }
}

/* Making programs and running them: every thread goes through all instructions and takes its share of each. */
#define _POSIX_C_SOURCE 200809L
#include "program.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const tk_kernels *const KERNELS[] = {
#ifdef TK_HAVE_VNNI
    &tk_vnni,
#endif
#ifdef TK_HAVE_AVX512
    &tk_avx512,
#endif
#ifdef TK_HAVE_AVX2
    &tk_avx2,
#endif
    &tk_portable,
};
enum { KINDS = sizeof KERNELS / sizeof *KERNELS };

int32_t tk_can(const char *isa) {
  int32_t built = 0;
  for (int k = 0; k < KINDS; k++) built |= !strcmp(isa, KERNELS[k]->name);
  if (!built) return 0;
  if (!strcmp(isa, "portable")) return 1;
#if defined(__x86_64__)
  __builtin_cpu_init();
  int32_t avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  int32_t wide = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (!strcmp(isa, "avx2")) return avx2;
  if (!strcmp(isa, "avx512")) return wide;
  if (!strcmp(isa, "vnni")) return wide && __builtin_cpu_supports("avx512vnni");
#endif
  return 0;
}

static int32_t treats_rows(const tk_instruction *i) {
  return i->op == TK_EMBED || i->op == TK_PLACE || i->op == TK_NORM || i->op == TK_ROTARY || i->op == TK_CLIP ||
         i->op == TK_TEMPER || i->op == TK_COPY || i->op == TK_GATE;
}

/* Whether each thread may go on from `i` to `j` without waiting: what it then reads, it has written itself. Rows are
 * shared out alike by all that treat rows, columns by what treats columns and by the rounding of a layer's input. */
static int32_t joins(const tk_instruction *i, const tk_instruction *j) {
  int32_t linear = j->op == TK_LINEAR && !takes_floats(j->format);
  if (i->rows != j->rows || i->rows == TK_CHOICES) return TK_MET;
  if (treats_rows(i) && (treats_rows(j) || linear || j->op == TK_ATTEND)) return TK_BY_ROWS;
  if (i->op == TK_GLU && linear && i->dst == j->src && i->dst_at == j->src_at && i->k == j->k) return TK_BY_COLUMNS;
  return TK_MET;
}

static const tk_kernels *kernels_of(const char *isa) {
  for (int k = 0; k < KINDS; k++)
    if (tk_can(KERNELS[k]->name) && (!*isa || !strcmp(isa, KERNELS[k]->name))) return KERNELS[k];
  return NULL;
}

const char *tk_isa(const prog *p) { return p->kernels->name; }

/* Space on cache lines, of at least one byte; what was there is lost. */
static int32_t renew(void *where, size_t bytes) {
  void **p = where;
  free(*p);
  *p = NULL;
  return posix_memalign(p, 64, bytes + 64) != 0;
}

tk_program *tk_make(const tk_instruction *code, int32_t length, const int32_t *widths, int32_t buffers,
                    int32_t choices, int32_t threads, const char *isa) {
  prog *p = calloc(1, sizeof *p);
  if (!p) return NULL;
  p->length = length;
  p->buffers = buffers;
  p->choices = choices;
  p->threads = most_of(1, threads);
  p->kernels = kernels_of(isa);
  p->code = malloc(sizeof *code * (size_t)length);
  p->buffer = calloc((size_t)buffers, sizeof *p->buffer);
  p->next = calloc((size_t)length, sizeof *p->next);
  p->joined = calloc((size_t)length + 1, 1);
  p->ahead = calloc((size_t)length + 1, sizeof *p->ahead);
  p->pool = tk_pool_make(p->threads);
  if (!p->joined || !p->ahead || renew(&p->soon, sizeof *p->soon * (size_t)p->threads) || !p->code || !p->buffer || !p->next || !p->pool || !p->kernels) {
    tk_free(p);
    return NULL;
  }
  memcpy(p->code, code, sizeof *code * (size_t)length);
  memset(p->soon, 0, sizeof *p->soon * (size_t)p->threads);
  for (int32_t n = length, next = length; n-- > 0;) {
    p->ahead[n] = next;
    if (code[n].op == TK_LINEAR) next = n;
  }
  for (int32_t b = 0; b < buffers; b++) p->buffer[b].width = widths[b];
  int32_t experts = 0;
  for (int32_t n = 0; n < length; n++) {
    const tk_instruction *i = code + n;
    if (n) p->joined[n] = (int8_t)joins(i - 1, i);
    if ((i->op == TK_LINEAR || i->op == TK_EXPERTS) && !takes_floats(i->format))
      p->groups = most_of(p->groups, (i->k + 31) / 32);
    if (i->op == TK_ROUTE) experts = most_of(experts, i->n);
  }
  if (renew(&p->first, sizeof *p->first * ((size_t)experts + 1))) {
    tk_free(p);
    return NULL;
  }
  return p;
}

void tk_free(prog *p) {
  if (!p) return;
  tk_pool_free(p->pool);
  for (int32_t b = 2; p->buffer && b < p->buffers; b++) free(p->buffer[b].data);
  free(p->code), free(p->buffer), free(p->next), free(p->joined), free(p->ahead), free(p->soon), free(p->q), free(p->scale), free(p->sum), free(p->chosen);
  free(p->first), free(p->member), free(p->share), free(p->partial), free(p->owner), free(p->position);
  free(p);
}

static int32_t grow(prog *p, int32_t rows) {
  int32_t failed = 0;
  size_t lines = (size_t)rows * p->choices;
  p->capacity = 0;
  for (int32_t b = 2; b < p->buffers; b++) failed |= renew(&p->buffer[b].data, lines * p->buffer[b].width * 4);
  failed |= renew(&p->q, lines * p->groups * 32) | renew(&p->scale, lines * p->groups * 4);
  failed |= renew(&p->sum, lines * p->groups * 4) | renew(&p->chosen, lines * 4);
  failed |= renew(&p->member, lines * 4) | renew(&p->share, lines * 4);
  failed |= renew(&p->owner, (size_t)rows * 4) | renew(&p->position, (size_t)rows * 4);
  if (!failed) p->capacity = rows;
  return failed;
}

/* Make room for a step and say where each row belongs. */
static int32_t prepare(prog *p, const tk_step *step) {
  p->step = step;
  p->rows = 0;
  for (int32_t s = 0; s < step->sequences; s++) p->rows += step->sequence[s].count;
  int32_t lines = most_of(most_of(p->rows, step->outputs), 1);
  if (lines > p->capacity && grow(p, lines)) return 1;
  for (int32_t s = 0, row = 0; s < step->sequences; s++)
    for (int32_t k = 0; k < step->sequence[s].count; k++, row++) {
      p->owner[row] = s;
      p->position[row] = step->sequence[s].start + k;
    }
  size_t need = tk_attend_space(p);
  if (need > p->partials) {
    p->partials = 0;
    if (renew(&p->partial, need * 4)) return 1;
    p->partials = need;
  }
  p->buffer[0].data = step->hidden;
  p->buffer[1].data = step->logits;
  return 0;
}

static void embed(prog *p, const tk_instruction *i, int32_t row) {
  float *y = at(p, i->dst, row, i->dst_at);
  int32_t token = p->step->tokens[row];
  const uint8_t *w = (const uint8_t *)i->weight + tk_packed_bytes(i->format, 16, i->k) * (token / 16);
  tk_unpack_row(i->format, i->k, w, token % 16, y);
  for (int32_t n = 0; n < i->k; n++) y[n] *= i->scale;
}

static void rotate(const prog *p, const tk_instruction *i, int32_t row) {
  const tk_rotary *r = p->step->rotary + i->table;
  int32_t half = i->n / 2;
  size_t line = (size_t)(r->by_row ? row : p->position[row]) * half;
  const float *cos = r->cos + line, *sin = r->sin + line;
  for (int32_t h = 0; h < i->heads; h++) {
    float *x = at(p, i->dst, row, i->dst_at + h * i->stride);
    int32_t step = i->kind ? 2 : 1, over = i->kind ? 1 : half;
    for (int32_t c = 0; c < half; c++) {
      float a = x[c * step], b = x[c * step + over];
      x[c * step] = a * cos[c] - b * sin[c];
      x[c * step + over] = b * cos[c] + a * sin[c];
    }
  }
}

static void normalise(const prog *p, const tk_instruction *i, int32_t row) {
  for (int32_t h = 0; h < i->heads; h++) {
    const float *w = i->weight, *b = i->bias;
    p->kernels->norm(at(p, i->dst, row, i->dst_at + h * i->k), at(p, i->src, row, i->src_at + h * i->k), i->k, i->kind,
                     i->eps, w ? w + h * i->stride : NULL, b ? b + h * i->stride : NULL);
  }
}

static void gather(const prog *p, const tk_instruction *i, int32_t row) {
  float *y = at(p, i->dst, row, i->dst_at);
  memset(y, 0, (size_t)i->k * 4);
  for (int32_t c = 0; c < p->choices; c++) {
    const float *x = at(p, i->src, row * p->choices + c, i->src_at);
    float by = i->flags & 1 ? p->share[(size_t)row * p->choices + c] : 1.0f;
    for (int32_t n = 0; n < i->k; n++) y[n] += x[n] * by;
  }
}

/* Instructions that treat each row by itself. */
static void do_row(prog *p, const tk_instruction *i, int32_t row) {
  float *y = at(p, i->dst, row, i->dst_at);
  const float *x = at(p, i->src, i->op == TK_SPREAD ? row / p->choices : row, i->src_at);
  switch (i->op) {
    case TK_EMBED: embed(p, i, row); break;
    case TK_NORM: normalise(p, i, row); break;
    case TK_ROTARY: rotate(p, i, row); break;
    case TK_GATHER: gather(p, i, row); break;
    case TK_PLACE: {
      const float *w = (const float *)i->weight + (int64_t)(p->position[row] + i->kind) * i->k;
      for (int32_t n = 0; n < i->k; n++) y[n] += w[n];
      break;
    }
    case TK_CLIP:
      for (int32_t n = 0; n < i->k; n++) y[n] = fminf(fmaxf(y[n], -i->limit), i->limit);
      break;
    case TK_TEMPER: {
      float by = log1pf(floorf((float)(p->position[row] + 1) / i->limit)) * i->scale + 1.0f;
      for (int32_t n = 0; n < i->k; n++) y[n] *= by;
      break;
    }
    case TK_COPY:
      for (int32_t h = 0; h < i->heads; h++) memmove(y + h * i->kind, x + h * i->stride, (size_t)i->k * 4);
      break;
    case TK_TAKE:
      memcpy(y, at(p, i->src, p->step->output ? p->step->output[row] : row, i->src_at), (size_t)i->k * 4);
      break;
    case TK_SPREAD: {
      float by = i->flags & 1 ? p->share[row] : 1.0f;
      for (int32_t n = 0; n < i->k; n++) y[n] = x[n] * by;
      break;
    }
    case TK_GATE: {
      float by = 1.0f / (1.0f + expf(-x[0]));
      for (int32_t n = 0; n < i->k; n++) y[n] *= by;
      break;
    }
  }
}

/* Instructions that treat each column by itself: columns [a, a + count) of a row. */
static void do_columns(prog *p, const tk_instruction *i, int32_t row, int32_t a, int32_t count) {
  float *y = at(p, i->dst, row, i->dst_at + a);
  const float *x = at(p, i->src, row, i->src_at + a);
  if (i->op == TK_GLU) p->kernels->act(y, x, x + i->k, count, i->act);
  if (i->op == TK_ACT) p->kernels->act(y, y, NULL, count, i->act);
  if (i->op == TK_LOGITS) p->kernels->cap(y, count, i->scale, i->limit);
  if (i->op == TK_ADD)
    for (int32_t n = 0; n < count; n++) y[n] += i->scale * x[n];
}

static void by_columns(prog *p, const tk_instruction *i, int32_t t) {
  int32_t a, b, pieces = (i->k + WIDE - 1) / WIDE;
  my_part(p, t, rows_of(p, i->rows) * pieces, &a, &b);
  for (; a < b; a++) do_columns(p, i, a / pieces, a % pieces * WIDE, least_of(WIDE, i->k - a % pieces * WIDE));
}

static void by_rows(prog *p, const tk_instruction *i, int32_t t) {
  int32_t a, b;
  my_part(p, t, rows_of(p, i->rows), &a, &b);
  for (; a < b; a++) do_row(p, i, a);
}

static void run(void *given, int32_t t) {
  prog *p = given;
  for (int32_t n = p->from; n < p->to; n++) {
    const tk_instruction *i = p->code + n;
    switch (i->op) {
      case TK_LINEAR: tk_linear(p, i, t, p->next + n); break;
      case TK_EXPERTS: tk_experts(p, i, t, p->next + n); break;
      case TK_ROUTE: tk_route(p, i, t); break;
      case TK_ATTEND: tk_attend(p, i, t); break;
      case TK_GLU: case TK_ACT: case TK_LOGITS: case TK_ADD: by_columns(p, i, t); break;
      default: by_rows(p, i, t);
    }
    if (i->op == TK_LINEAR && p->ahead[n] < p->to) p->soon[t].range = tk_linear_soon(p, p->code + p->ahead[n], t);
    if (n + 1 < p->to && !p->joined[n + 1]) meet(p, t);
  }
}

int32_t tk_run(prog *p, int32_t first, int32_t last, const tk_step *step) {
  p->from = first;
  p->to = last;
  if (prepare(p, step)) return 1;
  for (int32_t n = first; n < last; n++) atomic_store_explicit(p->next + n, 0, memory_order_relaxed);
  tk_pool_run(p->pool, run, p);
  return 0;
}

typedef struct { prog *p; const char *data; int64_t bytes; int32_t times; _Atomic double sink; } reading;

static void read_part(void *given, int32_t t) {
  reading *r = given;
  int64_t each = r->bytes / r->p->threads / 64 * 64;
  double s = 0;
  for (int32_t n = 0; n < r->times; n++) s += r->p->kernels->read(r->data + t * each, each);
  r->sink = s;
}

double tk_read_speed(prog *p, const void *data, int64_t bytes, int32_t times) {
  struct timespec a, b;
  reading r = {p, data, bytes, times, 0};
  clock_gettime(CLOCK_MONOTONIC, &a);
  tk_pool_run(p->pool, read_part, &r);
  clock_gettime(CLOCK_MONOTONIC, &b);
  return (double)(b.tv_sec - a.tv_sec) + 1e-9 * (double)(b.tv_nsec - a.tv_nsec);
}

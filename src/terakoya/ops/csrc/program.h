/* A program while it runs: what the files that carry out instructions share. */
#ifndef TK_PROGRAM_H
#define TK_PROGRAM_H
#include <stdatomic.h>
#include <stddef.h>

#include "kernels.h"
#include "pool.h"

typedef struct { float *data; int32_t width; } tk_buffer;

struct tk_program {
  tk_instruction *code;
  tk_buffer *buffer;
  int32_t length, buffers, choices, threads, capacity; /* capacity: rows the buffers hold */
  const tk_kernels *kernels;
  tk_pool *pool;
  atomic_int *next; /* by instruction: the first piece of work nobody has taken */
  int8_t *joined;   /* by instruction: each thread goes on from the one before with what it made itself, unmet */
  int32_t *ahead;   /* by instruction: the next layer with weights, or the length of the program */
  struct { _Alignas(64) tk_range range; } *soon; /* by thread: what it brings nearer while it waits for others */
  /* inputs in int8, for the widest quantised layer */
  int32_t groups;
  int8_t *q;
  float *scale, *sum;
  /* routing: each row's experts in rising order, their weights, and the choices of each expert, one after the other */
  int32_t experts, *chosen, *first, *member;
  float *share;
  /* attention: partial results, and each thread's own */
  float *partial;
  size_t partials;
  /* the step */
  const tk_step *step;
  int32_t rows, from, to, failed;
  int32_t *owner, *position; /* of each row */
};
typedef struct tk_program prog;

static inline int32_t least_of(int32_t a, int32_t b) { return a < b ? a : b; }
static inline int32_t most_of(int32_t a, int32_t b) { return a > b ? a : b; }
static inline int32_t round16(int32_t n) { return (n + 15) / 16 * 16; }

static inline int32_t rows_of(const prog *p, int32_t domain) {
  if (domain == TK_OUTPUTS) return p->step->output ? p->step->outputs : p->rows;
  return domain == TK_CHOICES ? p->rows * p->choices : p->rows;
}
static inline float *at(const prog *p, int32_t buffer, int32_t row, int32_t column) {
  return p->buffer[buffer].data + (size_t)row * p->buffer[buffer].width + column;
}
static inline void meet(prog *p, int32_t t) {
  if (p->threads > 1) tk_pool_meet(p->pool, &p->soon[t].range);
}
enum { WIDE = 256 }; /* columns of a piece where rows are cut */
enum { TK_MET, TK_BY_ROWS, TK_BY_COLUMNS };

/* The pieces [*a, *b) of n that are thread t's. */
static inline void my_part(const prog *p, int32_t t, int32_t n, int32_t *a, int32_t *b) {
  *a = (int32_t)((int64_t)n * t / p->threads);
  *b = (int32_t)((int64_t)n * (t + 1) / p->threads);
}

void tk_linear(prog *p, const tk_instruction *i, int32_t t, atomic_int *next);
/* The beginning of what thread t will read of a layer's weights. */
tk_range tk_linear_soon(const prog *p, const tk_instruction *i, int32_t t);
void tk_experts(prog *p, const tk_instruction *i, int32_t t, atomic_int *next);
void tk_route(prog *p, const tk_instruction *i, int32_t t);
void tk_attend(prog *p, const tk_instruction *i, int32_t t);
/* Floats of partial results that this step may need; by any attention. */
size_t tk_attend_space(const prog *p);
/* Bytes before the codes of a block, and of one group of 32 columns of its codes. */
int64_t tk_head_bytes(int32_t format, int32_t groups);
int32_t tk_code_bytes(int32_t format);
/* Row `lane` of one block, as floats. */
void tk_unpack_row(int32_t format, int32_t k, const void *block, int32_t lane, float *y);
#endif

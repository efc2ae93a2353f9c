/* What recurrences over time have in common: threads that share out their channels, and channels as vectors. */
#ifndef TK_RECUR_H
#define TK_RECUR_H
#include <pthread.h>
#include <stdlib.h>

#include "vec.h"

enum { W = 16, BLOCK = 16, THREADS = 64 }; /* channels of a group; tokens between states that are kept */

typedef struct {
  const int32_t *cu;
  int32_t sequences, channels, states, width, threads;
  const float *in[12];
  float *out[12];
} tk_recur;

/* In the order of ops/recur.py; 0: done; 1: memory or threads ran out. One table per compilation of recur.c. */
enum { RECURRENCES = 14 };
typedef struct { int32_t (*run[RECURRENCES])(const tk_recur *); } tk_recurrences;
extern const tk_recurrences tk_portable_recur, tk_avx2_recur, tk_avx512_recur, tk_vnni_recur;

typedef struct {
  const tk_recur *r;
  void (*work)(const tk_recur *r, int32_t first, int32_t last, int32_t thread, vf *scratch);
  int64_t scratch; /* vectors */
  int32_t first, last, thread, failed;
} part;

INLINE int32_t groups(const tk_recur *r) { return (r->channels + W - 1) / W; }

__attribute__((unused)) static void *run(void *given) {
  part *p = given;
  void *scratch = NULL;
  p->failed = posix_memalign(&scratch, 64, (size_t)(p->scratch + 1) * sizeof(vf));
  if (!p->failed) p->work(p->r, p->first, p->last, p->thread, scratch);
  free(scratch);
  return NULL;
}

/* Every thread takes some of n groups, with scratch of `each` vectors a group and `once` more. 0: done. */
INLINE int32_t share(const tk_recur *r, void (*work)(const tk_recur *, int32_t, int32_t, int32_t, vf *), int32_t n,
                     int64_t each, int64_t once) {
  part parts[THREADS];
  pthread_t thread[THREADS];
  int32_t count = r->threads < n ? r->threads : n, started = 1, failed = 0;
  if (count > THREADS) count = THREADS;
  for (int32_t i = 0; i < count; i++) {
    int32_t first = (int32_t)((int64_t)n * i / count), last = (int32_t)((int64_t)n * (i + 1) / count);
    parts[i] = (part){r, work, once + each * (last - first), first, last, i, 0};
  }
  while (started < count && !pthread_create(&thread[started], NULL, run, &parts[started])) started++;
  run(&parts[0]);
  for (int32_t i = 1; i < started; i++) pthread_join(thread[i], NULL);
  for (int32_t i = 0; i < count; i++) failed |= parts[i].failed;
  return failed || started < count;
}

INLINE vf take(const float *x, int32_t left) {
  if (left >= W) return load(x);
  float t[W] = {0};
  memcpy(t, x, (size_t)left * 4);
  return load(t);
}
INLINE void put(float *y, vf v, int32_t left) {
  if (left >= W) store(y, v);
  else memcpy(y, &v, (size_t)left * 4);
}
/* Rows of 16 channels, `width` numbers each, and vectors of a number of each channel. */
INLINE void turn(vf *to, const float *from, int32_t width, int32_t left) {
  float t[W] = {0};
  for (int32_t s = 0; s < width; s++) {
    for (int32_t i = 0; i < W && i < left; i++) t[i] = from[(int64_t)i * width + s];
    to[s] = load(t);
  }
}
INLINE void turn_back(float *to, const vf *from, int32_t width, int32_t left) {
  for (int32_t s = 0; s < width; s++)
    for (int32_t i = 0; i < W && i < left; i++) to[(int64_t)i * width + s] = from[s][i];
}
INLINE int64_t blocks_of(const tk_recur *r) {
  int64_t blocks = 0;
  for (int32_t n = 0; n < r->sequences; n++) blocks += (r->cu[n + 1] - r->cu[n] + BLOCK - 1) / BLOCK;
  return blocks;
}
INLINE void clear(vf *to, int64_t count) { memset(to, 0, (size_t)count * sizeof(vf)); }
#endif

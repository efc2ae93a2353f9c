/* Choice of experts (Shazeer 2017; DeepSeek 2024). score: 0 softmax, 1 sigmoid, 2 softmax over the chosen.
 * kind: groups of experts, 0: none; act: 1: a group is worth its two best, 0: its best; extra: bias of the choice. */
#include <math.h>
#include <string.h>

#include "program.h"

static int32_t best(const float *s, int32_t n) {
  int32_t found = 0;
  for (int32_t i = 1; i < n; i++)
    if (s[i] > s[found]) found = i;
  return found;
}

static float worth(const float *s, int32_t n, int32_t two) {
  float a = -INFINITY, b = -INFINITY;
  for (int32_t i = 0; i < n; i++) {
    if (s[i] > a) b = a, a = s[i];
    else if (s[i] > b) b = s[i];
  }
  return two ? a + b : a;
}

static void keep_groups(const tk_instruction *i, float *choice) {
  int32_t groups = i->kind, size = i->n / groups;
  float value[groups];
  int8_t kept[groups];
  for (int32_t g = 0; g < groups; g++) kept[g] = 0;
  for (int32_t g = 0; g < groups; g++) value[g] = worth(choice + g * size, size, i->act);
  for (int32_t k = 0; k < i->group_keep; k++) {
    int32_t g = best(value, groups);
    kept[g] = 1;
    value[g] = -INFINITY;
  }
  for (int32_t e = 0; e < i->n; e++)
    if (!kept[e / size]) choice[e] = i->act ? -INFINITY : 0.0f;
}

static void route_row(prog *p, const tk_instruction *i, int32_t row) {
  int32_t n = i->n, top = i->top;
  const float *x = at(p, i->src, row, i->src_at), *bias = i->extra;
  float score[n], choice[n], *share = p->share + (size_t)row * top, sum = 0, most = -INFINITY;
  int32_t *chosen = p->chosen + (size_t)row * top;
  for (int32_t e = 0; e < n; e++) most = x[e] > most ? x[e] : most;
  for (int32_t e = 0; e < n; e++) {
    score[e] = i->score == 0 ? expf(x[e] - most) : i->score == 1 ? 1.0f / (1.0f + expf(-x[e])) : x[e];
    sum += score[e];
  }
  for (int32_t e = 0; e < n; e++) {
    if (i->score == 0) score[e] /= sum;
    choice[e] = score[e] + (bias ? bias[e] : 0.0f);
  }
  if (i->kind) keep_groups(i, choice);
  for (int32_t c = 0; c < top; c++) {
    int32_t e = best(choice, n), to = c;
    choice[e] = -INFINITY;
    for (; to > 0 && chosen[to - 1] > e; to--) chosen[to] = chosen[to - 1];
    chosen[to] = e;
  }
  sum = 0;
  most = -INFINITY;
  for (int32_t c = 0; c < top; c++) most = score[chosen[c]] > most ? score[chosen[c]] : most;
  for (int32_t c = 0; c < top; c++) {
    share[c] = i->score == 2 ? expf(score[chosen[c]] - most) : score[chosen[c]];
    sum += share[c];
  }
  int32_t divide = i->normalise || i->score == 2;
  for (int32_t c = 0; c < top; c++) share[c] = share[c] / (divide ? sum + (i->score == 1 ? 1e-20f : 0.0f) : 1.0f) * i->scale;
}

void tk_route(prog *p, const tk_instruction *i, int32_t t) {
  int32_t a, b, all = p->rows * i->top;
  my_part(p, t, p->rows, &a, &b);
  for (; a < b; a++) route_row(p, i, a);
  meet(p, t);
  if (t) return;
  p->experts = i->n;
  memset(p->first, 0, ((size_t)i->n + 1) * sizeof *p->first);
  for (int32_t c = 0; c < all; c++) p->first[p->chosen[c] + 1]++;
  for (int32_t e = 0; e < i->n; e++) p->first[e + 1] += p->first[e];
  int32_t filled[i->n];
  memset(filled, 0, sizeof filled);
  for (int32_t c = 0; c < all; c++) p->member[p->first[p->chosen[c]] + filled[p->chosen[c]]++] = c;
}

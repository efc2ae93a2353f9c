/* Attention of a step: append, look, join. What is decoded (one row a sequence) is cut into spans of positions that
 * threads share; the spans and the order of joining are the same for every number of threads, rows and sequences. */
#include <math.h>
#include <string.h>

#include "program.h"

static int32_t size_of(const tk_instruction *i) { return i->format == TK_F16 ? 2 : 4; }
static const int32_t *pages_of(const tk_instruction *i, const tk_sequence *s) {
  return s->pages + (int64_t)s->memory[i->memory_at].table * s->stride;
}
/* A key head's part of a page. */
static char *keys_of(const tk_instruction *i, const tk_sequence *s, int64_t page, int32_t g) {
  return (char *)s->memory[i->memory_at].keys + (page * i->groups + g) * i->key_width * TK_PAGE * size_of(i);
}
static char *values_of(const tk_instruction *i, const tk_sequence *s, int64_t page, int32_t g) {
  return (char *)s->memory[i->memory_at].values + (page * i->groups + g) * round16(i->value_width) * TK_PAGE * size_of(i);
}

static void append(prog *p, const tk_instruction *i, int32_t row) {
  const tk_sequence *s = p->step->sequence + p->owner[row];
  int32_t pos = p->position[row], page = pages_of(i, s)[pos / TK_PAGE], in = pos % TK_PAGE;
  for (int32_t g = 0; g < i->groups; g++)
    p->kernels->keep(at(p, i->src, row, i->key_at + g * i->key_width), i->key_width,
                     at(p, i->src, row, i->value_at + g * i->value_width), i->value_width, i->format == TK_F16,
                     keys_of(i, s, page, g) + in * size_of(i),
                     values_of(i, s, page, g) + in * round16(i->value_width) * size_of(i));
}

typedef struct {
  int32_t first, sequence, group, tile, tiles, spans, span; /* of one unit of work */
} unit;

static int32_t tiles_of(const tk_instruction *i, const tk_sequence *s) {
  return (s->count * (i->heads / i->groups) + TILE - 1) / TILE;
}
static int32_t spans_of(const tk_sequence *s) { return s->count == 1 ? (s->start + SPAN) / SPAN : 1; }

/* The first position that the row at `pos` may see. */
static int32_t low_of(const tk_instruction *i, int32_t pos) {
  int32_t low = 0;
  if (i->window) low = most_of(low, pos - i->window + 1);
  if (i->chunk) low = most_of(low, pos / i->chunk * i->chunk);
  return low;
}

static size_t unit_floats(const tk_instruction *i) { return (size_t)TILE * (2 + round16(i->value_width)); }

/* Fill in the rows of a tile; their results stand in `space`. */
static void fill(prog *p, const tk_instruction *i, const unit *u, float *space, tk_look *a) {
  const tk_sequence *s = p->step->sequence + u->sequence;
  int32_t each = i->heads / i->groups, wide = round16(i->value_width);
  memset(a, 0, sizeof *a);
  a->k = keys_of(i, s, 0, u->group);
  a->v = values_of(i, s, 0, u->group);
  a->pages = pages_of(i, s);
  a->key_page = (int64_t)i->groups * i->key_width * TK_PAGE;
  a->value_page = (int64_t)i->groups * wide * TK_PAGE;
  a->half = i->format == TK_F16;
  a->key_width = i->key_width;
  a->value_width = wide;
  a->scale = i->scale;
  a->cap = i->limit;
  a->alibi = i->alibi;
  a->distances = i->distances;
  a->rows = least_of(TILE, s->count * each - u->tile * TILE);
  for (int32_t r = 0; r < a->rows; r++) {
    int32_t n = u->tile * TILE + r, row = u->first + n / each, head = u->group * each + n % each;
    int32_t pos = p->position[row];
    a->q[r] = at(p, i->src, row, i->src_at + head * i->key_width);
    a->at[r] = pos;
    a->low[r] = low_of(i, pos);
    a->high[r] = pos + 1;
    if (i->alibi) a->slope[r] = ((const float *)i->bias)[head];
    if (i->alibi == 2) a->bias[r] = &i->eps;
    if (i->distances) a->bias[r] = (const float *)i->bias + (int64_t)head * i->distances;
    a->most[r] = -INFINITY;
    a->weight[r] = 0;
    a->out[r] = space + r * wide;
  }
  memset(space, 0, (size_t)a->rows * wide * 4);
}

static void give(prog *p, const tk_instruction *i, const unit *u, const tk_look *a) {
  int32_t each = i->heads / i->groups;
  for (int32_t r = 0; r < a->rows; r++) {
    int32_t n = u->tile * TILE + r, head = u->group * each + n % each;
    float *y = at(p, i->dst, u->first + n / each, i->dst_at + head * i->value_width), weight = a->weight[r], by = 1;
    if (i->extra) { /* a score that takes probability and gives nothing */
      float sink = ((const float *)i->extra)[head], top = fmaxf(sink, a->most[r]);
      by = expf(a->most[r] - top);
      weight = weight * by + expf(sink - top);
    }
    by /= weight;
    for (int32_t c = 0; c < i->value_width; c++) y[c] = a->out[r][c] * by;
  }
}

static void look(prog *p, const tk_instruction *i, const unit *u, float *space) {
  tk_look a;
  fill(p, i, u, space, &a);
  int32_t low = a.low[0], high = a.high[a.rows - 1];
  int32_t first = u->spans > 1 ? u->span * SPAN : low / SPAN * SPAN;
  int32_t last = u->spans > 1 ? least_of(high, first + SPAN) : high;
  for (; first < last; first += SPAN) {
    if (first + SPAN <= low) continue;
    a.from = most_of(first, low / TK_PAGE * TK_PAGE); /* pages out of reach are no longer there */
    a.to = least_of(last, first + SPAN);
    p->kernels->attend(&a);
  }
  if (u->spans == 1) {
    give(p, i, u, &a);
    return;
  }
  float *end = space + (size_t)TILE * round16(i->value_width);
  memcpy(end, a.most, sizeof a.most);
  memcpy(end + TILE, a.weight, sizeof a.weight);
}

static void join(prog *p, const tk_instruction *i, const unit *u, const float *spaces, float *space) {
  tk_look a;
  int32_t wide = round16(i->value_width);
  fill(p, i, u, space, &a);
  for (int32_t s = 0; s < u->spans; s++) {
    const float *part = spaces + s * unit_floats(i), *end = part + (size_t)TILE * wide;
    for (int32_t r = 0; r < a.rows; r++)
      p->kernels->join(wide, &a.most[r], &a.weight[r], a.out[r], end[r], end[TILE + r], part + r * wide);
  }
  give(p, i, u, &a);
}

/* Go over all units; every thread counts alike and takes its own. With `joined`, units are whole tiles. */
static void walk(prog *p, const tk_instruction *i, int32_t t, int32_t joined) {
  int32_t number = 0, first = 0;
  size_t size = unit_floats(i), used = (size_t)p->threads * size; /* first each thread's own, then the partials */
  float *own = p->partial + (size_t)t * size;
  for (int32_t n = 0; n < p->step->sequences; n++) {
    const tk_sequence *s = p->step->sequence + n;
    int32_t tiles = tiles_of(i, s), spans = spans_of(s);
    for (int32_t g = 0; g < i->groups; g++)
      for (int32_t k = 0; k < tiles; k++) {
        unit u = {first, n, g, k, tiles, spans, 0};
        float *spaces = p->partial + used;
        if (spans > 1) used += spans * size;
        if (joined) {
          if (spans > 1 && number++ % p->threads == t) join(p, i, &u, spaces, own);
          continue;
        }
        for (u.span = 0; u.span < spans; u.span++)
          if (number++ % p->threads == t) look(p, i, &u, spans > 1 ? spaces + u.span * size : own);
      }
    first += s->count;
  }
}

void tk_attend(prog *p, const tk_instruction *i, int32_t t) {
  int32_t a, b, split = 0;
  my_part(p, t, p->rows, &a, &b);
  for (; a < b; a++) append(p, i, a);
  for (int32_t n = 0; n < p->step->sequences; n++) split |= spans_of(p->step->sequence + n) > 1;
  meet(p, t);
  walk(p, i, t, 0);
  if (!split) return;
  meet(p, t);
  walk(p, i, t, 1);
}

size_t tk_attend_space(const prog *p) {
  size_t most = 0;
  for (int32_t n = p->from; n < p->to; n++) {
    const tk_instruction *i = p->code + n;
    size_t need = (size_t)p->threads;
    if (i->op != TK_ATTEND) continue;
    for (int32_t s = 0; s < p->step->sequences; s++) {
      const tk_sequence *q = p->step->sequence + s;
      if (spans_of(q) > 1) need += (size_t)i->groups * tiles_of(i, q) * spans_of(q);
    }
    need *= unit_floats(i);
    most = need > most ? need : most;
  }
  return most;
}

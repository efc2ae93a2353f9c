/* Recurrences over time that training runs forward and back: sixteen channels at a time, their states in the cache.
 * Backward passes make the states of a block again from the one before it. What each computes stands in model/naive.py.
 * All arrays are contiguous floats; sequence n holds tokens [cu[n], cu[n + 1]); threads share out the channels. */
#include "gated.h"
#include "matrix.h"
#include "recur.h"

/* Mamba: in u, dt (T, D), a (D, S), b, c (T, S), start (N, D, S); out y (T, D), last (N, D, S), kept (blocks, D to a
 * multiple of 16, S) or NULL. */
static void selective(const tk_recur *r, int32_t first, int32_t last, int32_t thread, vf *h) {
  (void)thread;
  const int32_t D = r->channels, S = r->states, G = groups(r);
  vf *a = h + S;
  for (int32_t g = first; g < last; g++) {
    const int32_t left = D - g * W;
    int64_t block = 0;
    turn(a, r->in[2] + (int64_t)g * W * S, S, left);
    for (int32_t n = 0; n < r->sequences; n++) {
      turn(h, r->in[5] + ((int64_t)n * D + g * W) * S, S, left);
      for (int64_t t = r->cu[n]; t < r->cu[n + 1]; t++) {
        if (r->out[2] && (t - r->cu[n]) % BLOCK == 0)
          memcpy(r->out[2] + (block++ * G + g) * S * W, h, (size_t)S * sizeof(vf));
        vf dt = take(r->in[1] + t * D + g * W, left), fed = dt * take(r->in[0] + t * D + g * W, left), y = zero();
        const float *b = r->in[3] + t * S, *c = r->in[4] + t * S;
        for (int32_t s = 0; s < S; s++) {
          h[s] = muladd(exponential(dt * a[s]), h[s], fed * all(b[s]));
          y = muladd(h[s], all(c[s]), y);
        }
        put(r->out[0] + t * D + g * W, y, left);
      }
      turn_back(r->out[1] + ((int64_t)n * D + g * W) * S, h, S, left);
    }
  }
}

/* in as before with kept for start, then gy (T, D), glast (N, D, S); out gu, gdt (T, D), ga (D, S), gb, gc (threads, T,
 * S), gstart (N, D, S). Groups of channels inside blocks of time: gb and gc are sums over channels. */
static void selective_back(const tk_recur *r, int32_t first, int32_t last, int32_t thread, vf *scratch) {
  const int32_t D = r->channels, S = r->states, G = groups(r), mine = last - first;
  const int64_t T = r->cu[r->sequences];
  vf *a = scratch, *ga = a + (int64_t)mine * S, *slope = ga + (int64_t)mine * S, *h = slope + (int64_t)mine * S;
  vf *keep = h + (BLOCK + 1) * S, *gb = keep + BLOCK * S, *gc = gb + BLOCK * S;
  clear(ga, (int64_t)mine * S);
  int64_t block = blocks_of(r);
  for (int32_t g = first; g < last; g++) turn(a + (g - first) * S, r->in[2] + (int64_t)g * W * S, S, D - g * W);
  for (int32_t n = r->sequences - 1; n >= 0; n--) {
    const int64_t begin = r->cu[n], end = r->cu[n + 1];
    for (int32_t g = first; g < last; g++)
      turn(slope + (g - first) * S, r->in[7] + ((int64_t)n * D + g * W) * S, S, D - g * W);
    for (int64_t from = begin + (end - begin - 1) / BLOCK * BLOCK; from >= begin; from -= BLOCK) {
      const int32_t count = (int32_t)(end - from < BLOCK ? end - from : BLOCK);
      block--;
      clear(gb, count * S), clear(gc, count * S);
      for (int32_t g = first; g < last; g++) {
        const int32_t left = D - g * W;
        const vf *ag = a + (g - first) * S;
        vf *gag = ga + (g - first) * S, *sg = slope + (g - first) * S;
        memcpy(h, r->in[5] + (block * G + g) * S * W, (size_t)S * sizeof(vf));
        for (int32_t i = 0; i < count; i++) {
          const int64_t t = from + i;
          vf dt = take(r->in[1] + t * D + g * W, left), fed = dt * take(r->in[0] + t * D + g * W, left);
          const float *b = r->in[3] + t * S;
          for (int32_t s = 0; s < S; s++) {
            keep[i * S + s] = exponential(dt * ag[s]);
            h[(i + 1) * S + s] = muladd(keep[i * S + s], h[i * S + s], fed * all(b[s]));
          }
        }
        for (int32_t i = count - 1; i >= 0; i--) {
          const int64_t t = from + i;
          vf dt = take(r->in[1] + t * D + g * W, left), u = take(r->in[0] + t * D + g * W, left);
          vf gy = take(r->in[6] + t * D + g * W, left), fed = dt * u, gfed = zero(), gdt = zero();
          const float *b = r->in[3] + t * S, *c = r->in[4] + t * S;
          for (int32_t s = 0; s < S; s++) {
            vf d = muladd(gy, all(c[s]), sg[s]);
            gc[i * S + s] = muladd(gy, h[(i + 1) * S + s], gc[i * S + s]);
            gb[i * S + s] = muladd(fed, d, gb[i * S + s]);
            gfed = muladd(d, all(b[s]), gfed);
            sg[s] = d * keep[i * S + s];
            vf q = sg[s] * h[i * S + s];
            gdt = muladd(q, ag[s], gdt);
            gag[s] = muladd(q, dt, gag[s]);
          }
          put(r->out[0] + t * D + g * W, gfed * dt, left);
          put(r->out[1] + t * D + g * W, muladd(gfed, u, gdt), left);
        }
      }
      for (int32_t i = 0; i < count * S; i++) {
        r->out[3][(thread * T + from) * S + i] = total(gb[i]);
        r->out[4][(thread * T + from) * S + i] = total(gc[i]);
      }
    }
    for (int32_t g = first; g < last; g++)
      turn_back(r->out[5] + ((int64_t)n * D + g * W) * S, slope + (g - first) * S, S, D - g * W);
  }
  for (int32_t g = first; g < last; g++)
    turn_back(r->out[2] + (int64_t)g * W * S, ga + (g - first) * S, S, D - g * W);
}

/* S4D, H3: in u (T, D), a, b, c (D, S, 2), start (N, D, S, 2); out y (T, D), last (N, D, S, 2), kept or NULL.
 * Complex numbers lie as pairs, here too: state s has vectors 2 s and 2 s + 1. */
INLINE void move(vf *x, const vf *from, const vf *a, const vf *b, vf u, int32_t S) {
  for (int32_t s = 0; s < 2 * S; s += 2) {
    vf re = from[s], im = from[s + 1];
    x[s] = muladd(a[s], re, muladd(-a[s + 1], im, b[s] * u));
    x[s + 1] = muladd(a[s], im, muladd(a[s + 1], re, b[s + 1] * u));
  }
}
static void diagonal(const tk_recur *r, int32_t first, int32_t last, int32_t thread, vf *x) {
  (void)thread;
  const int32_t D = r->channels, S = r->states, V = 2 * S, G = groups(r);
  vf *a = x + V, *b = a + V, *c = b + V;
  for (int32_t g = first; g < last; g++) {
    const int32_t left = D - g * W;
    int64_t block = 0;
    turn(a, r->in[1] + (int64_t)g * W * V, V, left);
    turn(b, r->in[2] + (int64_t)g * W * V, V, left);
    turn(c, r->in[3] + (int64_t)g * W * V, V, left);
    for (int32_t n = 0; n < r->sequences; n++) {
      turn(x, r->in[4] + ((int64_t)n * D + g * W) * V, V, left);
      for (int64_t t = r->cu[n]; t < r->cu[n + 1]; t++) {
        if (r->out[2] && (t - r->cu[n]) % BLOCK == 0)
          memcpy(r->out[2] + (block++ * G + g) * V * W, x, (size_t)V * sizeof(vf));
        vf y = zero(), z = zero();
        move(x, x, a, b, take(r->in[0] + t * D + g * W, left), S);
        for (int32_t s = 0; s < V; s += 2) y = muladd(c[s], x[s], y), z = muladd(c[s + 1], x[s + 1], z);
        put(r->out[0] + t * D + g * W, y - z, left);
      }
      turn_back(r->out[1] + ((int64_t)n * D + g * W) * V, x, V, left);
    }
  }
}

/* in u, a, b, c, kept, gy (T, D), glast (N, D, S, 2); out gu (T, D), ga, gb, gc (D, S, 2), gstart (N, D, S, 2). */
static void diagonal_back(const tk_recur *r, int32_t first, int32_t last, int32_t thread, vf *scratch) {
  (void)thread;
  const int32_t D = r->channels, S = r->states, V = 2 * S, G = groups(r);
  vf *a = scratch, *b = a + V, *c = b + V, *ga = c + V, *gb = ga + V, *gc = gb + V, *slope = gc + V, *x = slope + V;
  const int64_t blocks = blocks_of(r);
  for (int32_t g = first; g < last; g++) {
    const int32_t left = D - g * W;
    int64_t block = blocks;
    turn(a, r->in[1] + (int64_t)g * W * V, V, left);
    turn(b, r->in[2] + (int64_t)g * W * V, V, left);
    turn(c, r->in[3] + (int64_t)g * W * V, V, left);
    clear(ga, 3 * V);
    for (int32_t n = r->sequences - 1; n >= 0; n--) {
      const int64_t begin = r->cu[n], end = r->cu[n + 1];
      turn(slope, r->in[6] + ((int64_t)n * D + g * W) * V, V, left);
      for (int64_t from = begin + (end - begin - 1) / BLOCK * BLOCK; from >= begin; from -= BLOCK) {
        const int32_t count = (int32_t)(end - from < BLOCK ? end - from : BLOCK);
        memcpy(x, r->in[4] + (--block * G + g) * V * W, (size_t)V * sizeof(vf));
        for (int32_t i = 0; i < count; i++)
          move(x + (i + 1) * V, x + i * V, a, b, take(r->in[0] + (from + i) * D + g * W, left), S);
        for (int32_t i = count - 1; i >= 0; i--) {
          const vf *now = x + (i + 1) * V, *before = x + i * V;
          vf u = take(r->in[0] + (from + i) * D + g * W, left), gy = take(r->in[5] + (from + i) * D + g * W, left);
          vf gu = zero(), gv = zero();
          for (int32_t s = 0; s < V; s += 2) {
            vf re = muladd(c[s], gy, slope[s]), im = muladd(-c[s + 1], gy, slope[s + 1]);
            gc[s] = muladd(gy, now[s], gc[s]), gc[s + 1] = muladd(-gy, now[s + 1], gc[s + 1]);
            gb[s] = muladd(re, u, gb[s]), gb[s + 1] = muladd(im, u, gb[s + 1]);
            gu = muladd(b[s], re, gu), gv = muladd(b[s + 1], im, gv);
            ga[s] = muladd(re, before[s], muladd(im, before[s + 1], ga[s]));
            ga[s + 1] = muladd(im, before[s], muladd(-re, before[s + 1], ga[s + 1]));
            slope[s] = muladd(a[s], re, a[s + 1] * im), slope[s + 1] = muladd(a[s], im, -a[s + 1] * re);
          }
          put(r->out[0] + (from + i) * D + g * W, gu + gv, left);
        }
      }
      turn_back(r->out[4] + ((int64_t)n * D + g * W) * V, slope, V, left);
    }
    turn_back(r->out[1] + (int64_t)g * W * V, ga, V, left);
    turn_back(r->out[2] + (int64_t)g * W * V, gb, V, left);
    turn_back(r->out[3] + (int64_t)g * W * V, gc, V, left);
  }
}

/* RWKV-4: in k, v (T, D), w, u (D), total (N, 2, D), most (N, D); out y (T, D), total, most, kept (T, 3, D) or NULL:
 * the sums before each token, whose exponent is the third. */
static void wkv(const tk_recur *r, int32_t first, int32_t last, int32_t thread, vf *scratch) {
  (void)thread, (void)scratch;
  const int64_t D = r->channels;
  for (int32_t g = first; g < last; g++) {
    const int32_t left = (int32_t)D - g * W, at = g * W;
    vf w = take(r->in[2] + at, left), first_u = take(r->in[3] + at, left);
    for (int32_t n = 0; n < r->sequences; n++) {
      vf a = take(r->in[4] + 2 * n * D + at, left), b = take(r->in[4] + (2 * n + 1) * D + at, left);
      vf m = take(r->in[5] + n * D + at, left);
      for (int64_t t = r->cu[n]; t < r->cu[n + 1]; t++) {
        vf k = take(r->in[0] + t * D + at, left), v = take(r->in[1] + t * D + at, left);
        if (r->out[3]) {
          put(r->out[3] + 3 * t * D + at, a, left);
          put(r->out[3] + (3 * t + 1) * D + at, b, left);
          put(r->out[3] + (3 * t + 2) * D + at, m, left);
        }
        vf top = most(m, k + first_u), e1 = exponential(m - top), e2 = exponential(k + first_u - top);
        put(r->out[0] + t * D + at, muladd(e1, a, e2 * v) / muladd(e1, b, e2), left);
        top = most(m + w, k), e1 = exponential(m + w - top), e2 = exponential(k - top);
        a = muladd(e1, a, e2 * v), b = muladd(e1, b, e2), m = top;
      }
      put(r->out[1] + 2 * n * D + at, a, left);
      put(r->out[1] + (2 * n + 1) * D + at, b, left);
      put(r->out[2] + n * D + at, m, left);
    }
  }
}

/* in k, v, w, u, kept, y, gy (T, D), gtotal (N, 2, D), most of the end and of the start (N, D); out gk, gv (T, D), gw,
 * gu (D), gstart (N, 2, D). The slopes of the sums have an exponent too. */
static void wkv_back(const tk_recur *r, int32_t first, int32_t last, int32_t thread, vf *scratch) {
  (void)thread, (void)scratch;
  const int64_t D = r->channels;
  for (int32_t g = first; g < last; g++) {
    const int32_t left = (int32_t)D - g * W, at = g * W;
    vf w = take(r->in[2] + at, left), first_u = take(r->in[3] + at, left), gw = zero(), gu = zero();
    for (int32_t n = r->sequences - 1; n >= 0; n--) {
      vf ga = take(r->in[7] + 2 * n * D + at, left), gb = take(r->in[7] + (2 * n + 1) * D + at, left);
      vf p = -take(r->in[8] + n * D + at, left); /* e^p (ga, gb): slopes of the sums after token t */
      for (int64_t t = r->cu[n + 1] - 1; t >= r->cu[n]; t--) {
        vf k = take(r->in[0] + t * D + at, left), v = take(r->in[1] + t * D + at, left);
        vf a = take(r->in[4] + 3 * t * D + at, left), b = take(r->in[4] + (3 * t + 1) * D + at, left);
        vf m = take(r->in[4] + (3 * t + 2) * D + at, left);
        vf y = take(r->in[5] + t * D + at, left), gy = take(r->in[6] + t * D + at, left);
        vf top = most(m, k + first_u), e2 = exponential(k + first_u - top);
        vf share = gy / muladd(exponential(m - top), b, e2), own = share * e2;
        vf ek = exponential(k + p), em = exponential(w + m + p);
        vf mine = own * (v - y);
        put(r->out[0] + t * D + at, muladd(ek, muladd(v, ga, gb), mine), left);
        put(r->out[1] + t * D + at, muladd(ek, ga, own), left);
        gu = gu + mine;
        gw = muladd(em, muladd(ga, a, gb * b), gw);
        vf next = most(p + w, -top), e3 = exponential(p + w - next), e4 = exponential(-top - next);
        ga = muladd(e3, ga, e4 * share), gb = muladd(e3, gb, -e4 * share * y), p = next;
      }
      vf back = exponential(p + take(r->in[9] + n * D + at, left));
      put(r->out[4] + 2 * n * D + at, back * ga, left);
      put(r->out[4] + (2 * n + 1) * D + at, back * gb, left);
    }
    put(r->out[2] + at, gw, left);
    put(r->out[3] + at, gu, left);
  }
}

static int32_t run_selective(const tk_recur *r) { return share(r, selective, groups(r), 0, 2 * r->states); }
static int32_t run_selective_back(const tk_recur *r) {
  return share(r, selective_back, groups(r), 3 * r->states, (int64_t)r->states * (4 * BLOCK + 1));
}
static int32_t run_diagonal(const tk_recur *r) { return share(r, diagonal, groups(r), 0, 8 * r->states); }
static int32_t run_diagonal_back(const tk_recur *r) {
  return share(r, diagonal_back, groups(r), 0, (int64_t)2 * r->states * (7 + BLOCK + 1));
}
static int32_t run_wkv(const tk_recur *r) { return share(r, wkv, groups(r), 0, 0); }
static int32_t run_wkv_back(const tk_recur *r) { return share(r, wkv_back, groups(r), 0, 0); }

#define NAMED(isa) NAMED_(isa)
#define NAMED_(isa) isa##_recur
const tk_recurrences NAMED(TK_ISA) = {
    {run_selective, run_selective_back, run_diagonal, run_diagonal_back, run_matrix, run_matrix_back, run_wkv,
     run_wkv_back, run_filter, run_filter_back, run_normed, run_normed_back, run_rglru, run_rglru_back}};

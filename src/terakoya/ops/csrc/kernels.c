/* Everything that computes on vectors; compiled once per instruction set, as TK_ISA. */
#include "attend.h"
#include "kernels.h"
#include "linear.h"
#include "wide.h"
#include "vec.h"

static void quantise(const float *x, int32_t k, int32_t first, int32_t last, int8_t *q, float *scale, float *sum) {
  for (int32_t g = first; g < last; g++) {
    float tail[32] = {0};
    const float *from = x + g * 32;
    if (k - g * 32 < 32) {
      memcpy(tail, from, (size_t)(k - g * 32) * 4);
      from = tail;
    }
    vf a = load(from), b = load(from + 16);
    float top = largest(most(magnitude(a), magnitude(b)));
    vf inverse = all(top > 0 ? 127.0f / top : 0.0f), magic = all(12582912.0f);
    vi i = (vi)(a * inverse + magic) - (vi)magic, j = (vi)(b * inverse + magic) - (vi)magic; /* to nearest, even */
    typedef int8_t v16 __attribute__((vector_size(16), aligned(1), may_alias));
    *(v16 *)(q + g * 32) = __builtin_convertvector(i, v16);
    *(v16 *)(q + g * 32 + 16) = __builtin_convertvector(j, v16);
    scale[g] = top / 127.0f;
    sum[g] = scale[g] * (float)total_whole(i + j);
  }
}

/* The last, partial vector of a row is worked on in a copy. */
INLINE vf take(const float *x, int32_t left) {
  if (left >= 16) return load(x);
  float t[16] = {0};
  memcpy(t, x, (size_t)left * 4);
  return load(t);
}
INLINE void put(float *y, vf v, int32_t left) {
  if (left >= 16) {
    store(y, v);
    return;
  }
  memcpy(y, &v, (size_t)left * 4);
}
INLINE vf part(vf v, int32_t left) { /* zeros behind the end */
  const vi lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return left >= 16 ? v : pick(lanes < left, v, zero());
}

static void norm(float *y, const float *x, int32_t k, int32_t kind, float eps, const float *weight,
                 const float *bias) {
  vf s = zero();
  float mean = 0;
  if (kind == 0) {
    for (int32_t i = 0; i < k; i += 16) s = s + take(x + i, k - i);
    mean = total(s) / (float)k;
    s = zero();
  }
  for (int32_t i = 0; i < k; i += 16) {
    vf v = part(take(x + i, k - i) - all(mean), k - i);
    s = muladd(v, v, s);
  }
  vf by = all(1.0f / sqrtf(total(s) / (float)k + eps));
  for (int32_t i = 0; i < k; i += 16) {
    vf v = (take(x + i, k - i) - all(mean)) * by;
    if (weight) v = v * take(weight + i, k - i);
    if (bias) v = v + take(bias + i, k - i);
    put(y + i, v, k - i);
  }
}

/* A key goes to lane `pos % 16` of its block (k, 16), a value to its row, padded with zeros to whole vectors. */
static void keep(const float *key, int32_t k, const float *value, int32_t v, int32_t half, void *key_to, void *value_to) {
  float *kf = key_to, *vf_to = value_to;
  uint16_t *kh = key_to, *vh_to = value_to, t[16];
  for (int32_t i = 0; i < k; i += 16) {
    vf x = take(key + i, k - i);
    int32_t here = k - i < 16 ? k - i : 16;
    if (half) put_halves(t, x);
    for (int32_t n = 0; n < here; n++) {
      if (half) kh[(i + n) * 16] = t[n];
      else kf[(i + n) * 16] = x[n];
    }
  }
  for (int32_t i = 0; i < v; i += 16) {
    vf x = take(value + i, v - i);
    if (half) put_halves(vh_to + i, x);
    else store(vf_to + i, x);
  }
}

INLINE vf activated(vf x, const int kind) {
  switch (kind) {
    case TK_GELU: return all(0.5f) * x * (all(1.0f) + error_function(x * all(0.70710678f)));
    case TK_GELU_TANH: {
      vf u = all(0.79788456f) * (x + all(0.044715f) * x * x * x);
      return x * sigmoid(u + u); /* 0.5 (1 + tanh u) = sigmoid(2u) */
    }
    case TK_RELU: return most(x, zero());
    case TK_RELU2: return most(x, zero()) * most(x, zero());
    case TK_SILU: return x * sigmoid(x);
    case TK_QUICK_GELU: return x * sigmoid(all(1.702f) * x);
    default: return sigmoid(x);
  }
}

INLINE void act_as(float *y, const float *gate, const float *up, int32_t k, const int kind) {
  for (int32_t i = 0; i < k; i += 16) {
    vf g = take(gate + i, k - i), u = up ? take(up + i, k - i) : all(1.0f);
    if (kind == TK_SWIGLU_CLAMPED) {
      g = least(g, all(7.0f));
      u = most(least(u, all(7.0f)), all(-7.0f));
      put(y + i, (u + all(1.0f)) * g * sigmoid(all(1.702f) * g), k - i);
    } else
      put(y + i, activated(g, kind) * u, k - i);
  }
}

static void act(float *y, const float *gate, const float *up, int32_t k, int32_t kind) {
  switch (kind) {
    case TK_GELU: act_as(y, gate, up, k, TK_GELU); return;
    case TK_GELU_TANH: act_as(y, gate, up, k, TK_GELU_TANH); return;
    case TK_RELU: act_as(y, gate, up, k, TK_RELU); return;
    case TK_RELU2: act_as(y, gate, up, k, TK_RELU2); return;
    case TK_SILU: act_as(y, gate, up, k, TK_SILU); return;
    case TK_QUICK_GELU: act_as(y, gate, up, k, TK_QUICK_GELU); return;
    case TK_SWIGLU_CLAMPED: act_as(y, gate, up, k, TK_SWIGLU_CLAMPED); return;
    default: act_as(y, gate, up, k, TK_SIGMOID);
  }
}

static void cap(float *y, int32_t k, float scale, float limit) {
  for (int32_t i = 0; i < k; i += 16) {
    vf v = take(y + i, k - i) * all(scale);
    if (limit > 0) v = all(limit) * tangent(v / all(limit));
    put(y + i, v, k - i);
  }
}

static double read_all(const void *data, int64_t bytes) {
  const float *p = data;
  vf a = zero(), b = zero(), c = zero(), d = zero();
  for (int64_t i = 0; i + 64 <= bytes / 4; i += 64) {
    for (int j = 0; j < 4; j++) __builtin_prefetch(p + i + AHEAD / 4 + 16 * j);
    a = a + load(p + i), b = b + load(p + i + 16), c = c + load(p + i + 32), d = d + load(p + i + 48);
  }
  return total(a + b + c + d);
}

const tk_kernels TK_ISA = {TK_NAME, quantise, {linear_f32, linear_q8, linear_q4, linear_f16, linear_b16, linear_q5, linear_s4, linear_s5, linear_k4, linear_k5,
                           linear_k6}, norm, act, cap, keep, attend, join,
                           read_all};

/* Weights into blocks of 16 rows: from floats, rounded to the nearest, or from GGUF blocks as they are. */
#include <math.h>
#include <string.h>

#include "program.h"
#include "vec.h"

static float from_half(uint16_t h) {
  uint32_t u = (uint32_t)(h & 0x7fff) << 13, sign = (uint32_t)(h & 0x8000) << 16;
  float x;
  memcpy(&x, &u, 4);
  x *= 0x1p112f;
  memcpy(&u, &x, 4);
  u |= sign;
  memcpy(&x, &u, 4);
  return x;
}

static uint16_t short_of(float x) { /* bfloat16, to nearest, even; no NaN */
  uint32_t u;
  memcpy(&u, &x, 4);
  return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

int32_t tk_code_bytes(int32_t format) {
  switch (format) {
    case TK_Q8: return 512;
    case TK_Q5: case TK_S5: case TK_K5: return 320;
    case TK_K6: return 384;
    default: return 256;
  }
}

static int32_t scale_alone(int32_t format) { return format == TK_Q8 || format == TK_S4 || format == TK_S5; }

int64_t tk_head_bytes(int32_t format, int32_t groups) {
  if (scale_alone(format)) return ((int64_t)groups * 32 + 63) / 64 * 64;
  return format >= TK_K4 ? (int64_t)groups / 8 * 320 : (int64_t)groups * 64;
}

/* Where a group of 32 columns of one row of a block stands. */
typedef struct { uint16_t *d, *m; uint8_t *s, *q; } place;

static place place_of(int32_t format, int32_t groups, uint8_t *block, int32_t g, int32_t lane) {
  uint8_t *q = block + tk_head_bytes(format, groups) + (int64_t)g * tk_code_bytes(format) + lane * 4;
  if (scale_alone(format)) return (place){(uint16_t *)block + g * 16 + lane, NULL, NULL, q};
  if (format < TK_K4) return (place){(uint16_t *)block + g * 32 + lane, (uint16_t *)block + g * 32 + 16 + lane, NULL, q};
  uint16_t *dm = (uint16_t *)(block + g / 8 * 320) + lane;
  return (place){dm, dm + 16, block + g / 8 * 320 + 64 + g % 8 * 32 + lane, q};
}

static void put4(place to, const uint8_t *v) { /* the lower four bits of v (32) */
  for (int j = 0; j < 4; j++)
    for (int c = 0; c < 4; c++) to.q[64 * j + c] = (uint8_t)((v[8 * j + c] & 15) | v[8 * j + 4 + c] << 4);
}
static void put_above(int32_t format, place to, const uint8_t *v) { /* what is above them */
  for (int j = 0; j < 4; j++)
    for (int c = 0; c < 4; c++) {
      int l = v[8 * j + c] >> 4, h = v[8 * j + 4 + c] >> 4;
      if (format == TK_K6) to.q[256 + 64 * (j / 2) + c] |= (uint8_t)((l | h << 2) << j % 2 * 4);
      else to.q[256 + c] |= (uint8_t)((l | h << 1) << 2 * j);
    }
}
static uint8_t code_at(int32_t format, place from, int in) { /* column `in` of the group */
  int j = in / 8, c = in % 4, high = in % 8 > 3;
  uint8_t q = from.q[64 * j + c], v = high ? q >> 4 : q & 15;
  if (format == TK_K6) return (uint8_t)(v | (from.q[256 + 64 * (j / 2) + c] >> (j % 2 * 4 + 2 * high) & 3) << 4);
  if (format == TK_Q5 || format == TK_S5 || format == TK_K5) return (uint8_t)(v | (from.q[256 + c] >> (2 * j + high) & 1) << 4);
  return v;
}
static void put8(place to, const int8_t *v) {
  for (int j = 0; j < 8; j++) memcpy(to.q + 64 * j, v + 4 * j, 4);
}

static void round4(place to, const float *w) {
  float low = w[0], high = w[0];
  uint8_t v[32];
  for (int c = 1; c < 32; c++) low = fminf(low, w[c]), high = fmaxf(high, w[c]);
  *to.d = half_of((high - low) / 15.0f);
  *to.m = half_of(low);
  float d = from_half(*to.d), m = from_half(*to.m), by = d > 0 ? 1.0f / d : 0.0f;
  for (int c = 0; c < 32; c++) v[c] = (uint8_t)fminf(fmaxf(rintf((w[c] - m) * by), 0.0f), 15.0f);
  put4(to, v);
}

static void round8(place to, const float *w) {
  float most = 0;
  int8_t v[32];
  for (int c = 0; c < 32; c++) most = fmaxf(most, fabsf(w[c]));
  *to.d = half_of(most / 127.0f);
  float d = from_half(*to.d), by = d > 0 ? 1.0f / d : 0.0f;
  for (int c = 0; c < 32; c++) v[c] = (int8_t)fminf(fmaxf(rintf(w[c] * by), -127.0f), 127.0f);
  put8(to, v);
}

void tk_pack(int32_t format, int32_t n, int32_t k, const float *w, void *out) {
  int32_t groups = (k + 31) / 32;
  int64_t bytes = tk_packed_bytes(format, 16, k);
  memset(out, 0, (size_t)tk_packed_bytes(format, n, k));
  for (int32_t row = 0; row < n; row++, w += k) {
    uint8_t *block = (uint8_t *)out + bytes * (row / 16);
    if (format == TK_F32) {
      for (int32_t c = 0; c < k; c++) ((float *)block)[c * 16 + row % 16] = w[c];
      continue;
    }
    if (format == TK_F16 || format == TK_B16) {
      for (int32_t c = 0; c < k; c++) ((uint16_t *)block)[c * 16 + row % 16] = format == TK_F16 ? half_of(w[c]) : short_of(w[c]);
      continue;
    }
    for (int32_t g = 0; g < groups; g++) {
      float part[32] = {0};
      memcpy(part, w + g * 32, (size_t)least_of(32, k - g * 32) * 4);
      place to = place_of(format, groups, block, g, row % 16);
      if (format == TK_Q4) round4(to, part);
      else round8(to, part);
    }
  }
}

/* GGUF types. */
enum { Q4_0 = 2, Q4_1, Q5_0 = 6, Q5_1, Q8_0, Q4_K = 12, Q5_K, Q6_K };

static int32_t format_of(int32_t type) {
  switch (type) {
    case Q4_0: return TK_S4;
    case Q4_1: return TK_Q4;
    case Q5_0: return TK_S5;
    case Q5_1: return TK_Q5;
    case Q8_0: return TK_Q8;
    case Q4_K: return TK_K4;
    case Q5_K: return TK_K5;
    case Q6_K: return TK_K6;
    default: return -1;
  }
}

static int32_t block_of(int32_t type) { /* bytes */
  switch (type) {
    case Q4_0: return 18;
    case Q4_1: return 20;
    case Q5_0: return 22;
    case Q5_1: return 24;
    case Q8_0: return 34;
    case Q4_K: return 144;
    case Q5_K: return 176;
    default: return 210;
  }
}

int64_t tk_block_row(int32_t type, int32_t k) { return (int64_t)k / (type < Q4_K ? 32 : 256) * block_of(type); }

/* Four and five bits: a minimum stands in the block, or half of the levels are below zero. */
static void take_small(int32_t type, place to, const uint8_t *from) {
  uint8_t v[32];
  int five = type == Q5_0 || type == Q5_1, own = type == Q4_1 || type == Q5_1;
  const uint8_t *codes = from + 2 + 2 * own + 4 * five;
  memcpy(to.d, from, 2);
  if (own) memcpy(to.m, from + 2, 2);
  for (int c = 0; c < 32; c++) {
    v[c] = c < 16 ? codes[c] & 15 : codes[c - 16] >> 4;
    if (five) v[c] |= (uint8_t)((codes[-4 + c / 8] >> c % 8 & 1) << 4);
  }
  put4(to, v);
  if (five) put_above(TK_Q5, to, v);
}

/* Group g of a block of 256: scales and minima of six bits, or scales of eight for each sixteen. */
static void take_k(int32_t type, place to, const uint8_t *from, int32_t g) {
  uint8_t v[32];
  if (type == Q6_K) {
    const uint8_t *low = from + g / 4 * 64 + g % 2 * 32, *high = from + 128 + g / 4 * 32;
    memcpy(to.d, from + 208, 2);
    to.s[0] = from[192 + 2 * g], to.s[16] = from[193 + 2 * g];
    for (int c = 0; c < 32; c++)
      v[c] = (uint8_t)((g % 4 < 2 ? low[c] & 15 : low[c] >> 4) | (high[c] >> g % 4 * 2 & 3) << 4);
    put4(to, v);
    put_above(TK_K6, to, v);
    return;
  }
  const uint8_t *s = from + 4, *codes = from + (type == Q5_K ? 48 : 16) + g / 2 * 32;
  uint16_t m;
  memcpy(to.d, from, 2);
  memcpy(&m, from + 2, 2);
  *to.m = m ^ 0x8000; /* the file's are taken off */
  to.s[0] = g < 4 ? s[g] & 63 : (s[g + 4] & 15) | (s[g - 4] >> 6) << 4;
  to.s[16] = g < 4 ? s[g + 4] & 63 : s[g + 4] >> 4 | (s[g] >> 6) << 4;
  for (int c = 0; c < 32; c++) {
    v[c] = g % 2 ? codes[c] >> 4 : codes[c] & 15;
    if (type == Q5_K) v[c] |= (uint8_t)((from[16 + c] >> g & 1) << 4);
  }
  put4(to, v);
  if (type == Q5_K) put_above(TK_K5, to, v);
}

void tk_pack_blocks(int32_t type, int32_t n, int32_t k, const uint8_t *from, void *out) {
  int32_t groups = k / 32, format = format_of(type), size = block_of(type);
  int64_t bytes = tk_packed_bytes(format, 16, k);
  memset(out, 0, (size_t)tk_packed_bytes(format, n, k));
  for (int32_t row = 0; row < n; row++, from += tk_block_row(type, k))
    for (int32_t g = 0; g < groups; g++) {
      place to = place_of(format, groups, (uint8_t *)out + bytes * (row / 16), g, row % 16);
      if (type >= Q4_K) {
        take_k(type, to, from + g / 8 * size, g % 8);
      } else if (type == Q8_0) {
        memcpy(to.d, from + g * size, 2);
        put8(to, (const int8_t *)from + g * size + 2);
      } else {
        take_small(type, to, from + g * size);
      }
    }
}

static float from_short(uint16_t v) {
  uint32_t u = (uint32_t)v << 16;
  float x;
  memcpy(&x, &u, 4);
  return x;
}

void tk_unpack_row(int32_t format, int32_t k, const void *block, int32_t lane, float *y) {
  if (takes_floats(format)) {
    for (int32_t c = 0, at = lane; c < k; c++, at += 16)
      y[c] = format == TK_F32 ? ((const float *)block)[at]
             : format == TK_F16 ? from_half(((const uint16_t *)block)[at]) : from_short(((const uint16_t *)block)[at]);
    return;
  }
  for (int32_t g = 0; g * 32 < k; g++) {
    place from = place_of(format, (k + 31) / 32, (uint8_t *)block, g, lane);
    float d = from_half(*from.d), m = from.m ? from_half(*from.m) : (format == TK_S4 ? -8.0f : -16.0f) * d;
    float d2 = d; /* of the last sixteen columns */
    if (format == TK_K6) d2 = d * (float)(int8_t)from.s[16], d = d * (float)(int8_t)from.s[0];
    else if (from.s) d2 = d = d * (float)from.s[0], m = m * (float)from.s[16];
    for (int in = 0; in < 32 && g * 32 + in < k; in++) {
      float *to = y + g * 32 + in;
      if (format == TK_Q8) *to = d * (float)(int8_t)from.q[64 * (in / 4) + in % 4];
      else if (format == TK_K6) *to = (in < 16 ? d : d2) * (float)(code_at(format, from, in) - 32);
      else *to = d * (float)code_at(format, from, in) + m;
    }
  }
}

void tk_unpack(int32_t format, int32_t n, int32_t k, const void *packed, float *w) {
  for (int32_t row = 0; row < n; row++)
    tk_unpack_row(format, k, (const char *)packed + tk_packed_bytes(format, 16, k) * (row / 16), row % 16, w + (int64_t)row * k);
}

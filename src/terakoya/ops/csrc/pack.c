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

/* Where a group of 32 columns of one row of a block stands. */
typedef struct { uint16_t *d, *m; uint8_t *q; } place;

static place place_of(int32_t format, int32_t groups, uint8_t *block, int32_t g, int32_t lane) {
  if (format == TK_Q4) {
    uint16_t *dm = (uint16_t *)block + g * 32 + lane;
    return (place){dm, dm + 16, block + groups * 64 + g * 256 + lane * 4};
  }
  return (place){(uint16_t *)block + g * 16 + lane, NULL, block + (groups * 32 + 63) / 64 * 64 + g * 512 + lane * 4};
}

static void put4(place to, const uint8_t *v) { /* v (32) below 16 */
  for (int j = 0; j < 4; j++)
    for (int c = 0; c < 4; c++) to.q[64 * j + c] = (uint8_t)(v[8 * j + c] | v[8 * j + 4 + c] << 4);
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
    for (int32_t g = 0; g < groups; g++) {
      float part[32] = {0};
      memcpy(part, w + g * 32, (size_t)least_of(32, k - g * 32) * 4);
      place to = place_of(format, groups, block, g, row % 16);
      if (format == TK_Q4) round4(to, part);
      else round8(to, part);
    }
  }
}

void tk_pack_blocks(int32_t type, int32_t n, int32_t k, const uint8_t *from, void *out) {
  int32_t groups = k / 32, format = type == 8 ? TK_Q8 : TK_Q4;
  int64_t bytes = tk_packed_bytes(format, 16, k);
  memset(out, 0, (size_t)tk_packed_bytes(format, n, k));
  for (int32_t row = 0; row < n; row++)
    for (int32_t g = 0; g < groups; g++) {
      place to = place_of(format, groups, (uint8_t *)out + bytes * (row / 16), g, row % 16);
      uint8_t v[32];
      memcpy(to.d, from, 2);
      if (type == 8) {
        put8(to, (const int8_t *)from + 2);
        from += 34;
        continue;
      }
      if (type == 3) memcpy(to.m, from + 2, 2);
      else *to.m = half_of(-8.0f * from_half(*to.d)); /* exact: a power of two */
      from += type == 3 ? 4 : 2;
      for (int c = 0; c < 16; c++) v[c] = from[c] & 15, v[16 + c] = from[c] >> 4;
      put4(to, v);
      from += 16;
    }
}

void tk_unpack_row(int32_t format, int32_t k, const void *block, int32_t lane, float *y) {
  if (format == TK_F32) {
    for (int32_t c = 0; c < k; c++) y[c] = ((const float *)block)[c * 16 + lane];
    return;
  }
  for (int32_t c = 0; c < k; c++) {
    place from = place_of(format, (k + 31) / 32, (uint8_t *)block, c / 32, lane);
    int32_t in = c % 32;
    if (format == TK_Q8) {
      y[c] = from_half(*from.d) * (float)(int8_t)from.q[64 * (in / 4) + in % 4];
      continue;
    }
    uint8_t q = from.q[64 * (in / 8) + in % 4];
    y[c] = from_half(*from.d) * (float)(in % 8 < 4 ? q & 15 : q >> 4) + from_half(*from.m);
  }
}

void tk_unpack(int32_t format, int32_t n, int32_t k, const void *packed, float *w) {
  for (int32_t row = 0; row < n; row++)
    tk_unpack_row(format, k, (const char *)packed + tk_packed_bytes(format, 16, k) * (row / 16), row % 16, w + (int64_t)row * k);
}

// Sixteen numbers at once, and what is done with them.

#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

typedef float Vec __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t Words __attribute__((vector_size(64), aligned(4), may_alias));
typedef int8_t Bytes __attribute__((vector_size(16), aligned(1), may_alias));
typedef uint16_t Halves __attribute__((vector_size(32), aligned(2), may_alias));
static const int64_t LANES = 16, UNIT = 64, CHUNK = 64, QUERIES = 4;
static const float NOWHERE = -1e30f;  // the score of a key that a query does not see

#ifdef __AVX512F__
static const bool WIDE = true;  // 32 registers of one Vec each
#else
static const bool WIDE = false;
#endif

static inline Vec spread(float s) { return s - Vec{}; }
static inline Vec load(const float* p) { return *(const Vec*)p; }
static inline void store(float* p, Vec v) { *(Vec*)p = v; }
static inline Vec weights(const float* p) { return load(p); }
static inline Vec weights(const uint16_t* p) {
    return (Vec)(__builtin_convertvector(*(const Halves*)p, Words) << 16);
}
enum { FLOATS, HALVES, FOUR_BITS, EIGHT_BITS };
static inline int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

static inline float total(Vec v) {  // in pairs, always the same ones
    float a[8], b[4];
    for (int i = 0; i < 8; i++) a[i] = v[i] + v[i + 8];
    for (int i = 0; i < 4; i++) b[i] = a[i] + a[i + 4];
    return (b[0] + b[2]) + (b[1] + b[3]);
}
static inline float largest(Vec v) {
    float best = v[0];
    for (int i = 1; i < 16; i++) best = v[i] > best ? v[i] : best;
    return best;
}
// e^x by 2^whole, a polynomial of degree 5 (the coefficients are those of Cephes' expf) in what is left of x.
static inline Vec of_rest(Vec x, Vec whole) {
    x = x - whole * 0.693359375f;
    x = x + whole * 2.12194440e-4f;
    Vec y = spread(1.9875691500e-4f);
    y = y * x + 1.3981999507e-3f;
    y = y * x + 8.3334519073e-3f;
    y = y * x + 4.1665795894e-2f;
    y = y * x + 1.6666665459e-1f;
    y = y * x + 5.0000001201e-1f;
    Vec square = x * x;
    y = y * square + x;
    return y + 1.0f;
}
// e^x; NOWHERE gives 0.
static inline Vec exponential(Vec x) {
    Ints seen = x > spread(0.5f * NOWHERE);
    x = x > spread(-87.3f) ? x : spread(-87.3f);
    x = x < spread(88.0f) ? x : spread(88.0f);
    Vec scaled = x * 1.44269504088896341f + 0.5f;
    Ints power = __builtin_convertvector(scaled, Ints);
    power += __builtin_convertvector(power, Vec) > scaled;
    Vec y = of_rest(x, __builtin_convertvector(power, Vec)) * (Vec)((power + 127) << 23);
    return (Vec)((Ints)y & seen);
}

// What will be read is asked for, far ahead and into the second cache: nearer, or into the first, memory is read more slowly.
static inline void ahead(const void* at) { __builtin_prefetch((const char*)at + 16384, 0, 2); }
static inline void near(const void* at) { __builtin_prefetch((const char*)at + 4096, 0, 2); }  // of what is shorter

// Rows times matrices in blocks of 32 inputs, whose numbers are d * q + m with q of four or of eight bits.
//
// A row's numbers are taken in fixed point, 24 bits with the sign for the greatest of each 32, and multiplied with q as whole
// numbers, so that a block's sum is exact in whatever order it is made; then it is one float32, and meets d and m. What fixed
// point leaves out is less than half of 2^-22 of the block's greatest, as much as float32 rounds away from a sum that it is in.
// Three bytes stand for a number: 65536 a + 256 b + c, each from -128 to 127, as the instructions want them that multiply bytes.

#pragma once
#include <vector>

#include "vectors.h"
#ifdef __AVX2__
#include <immintrin.h>
#endif

static const int64_t BLOCK = 32;

struct FourBits {   // d [64], m [64], then [4][64] words: of eight inputs, the first four in the lower halves of the bytes
    static const int64_t BYTES = 24, WORDS = 4;  // of a block, for one output
    static const bool OFFSET = true;
};
struct EightBits {  // d [64], then [8][64] words of four inputs, q + 128
    static const int64_t BYTES = 36, WORDS = 8;
    static const bool OFFSET = false;
};

// ------------------------------------------------------------------------------------------------------------ rows in blocks
struct alignas(64) Fixed {   // 32 numbers of a row: x = scale * (256 * (256 a + b) + c)
    int8_t byte[3][BLOCK];   // a, b, c
    float scale, sum;        // 2^..., the sum of x
    int32_t upper, lower;    // the sums of 256 a + b and of c
};
static const int32_t MOST = (127 << 16) + (127 << 8) + 127;

typedef int32_t Ints8 __attribute__((vector_size(32)));
typedef int32_t Ints4 __attribute__((vector_size(16)));
template <class Both>
static inline int32_t fold(Ints v, Both both) {  // of sixteen one, by halves
    Ints8 eight[2];
    memcpy(eight, &v, sizeof v);
    eight[0] = both(eight[0], eight[1]);
    Ints4 four[2];
    memcpy(four, eight, sizeof four);
    four[0] = both(four[0], four[1]);
    int32_t rest[4];
    memcpy(rest, four, sizeof rest);
    return both(both(rest[0], rest[1]), both(rest[2], rest[3]));
}
static inline int32_t total(Ints v) { return fold(v, [](auto a, auto b) { return a + b; }); }
static inline int32_t greatest(Ints v) { return fold(v, [](auto a, auto b) { return a > b ? a : b; }); }
static inline float power_of_two(int32_t n) {
    const int32_t bits = (n + 127) << 23;
    float made;
    memcpy(&made, &bits, sizeof made);
    return made;
}

static inline void fix(const float* x, Fixed* out) {
    const Vec v[2] = {load(x), load(x + LANES)};
    Ints size[2];
    for (int i = 0; i < 2; i++) size[i] = (Ints)v[i] & 0x7fffffff;
    // As bits, which are in the order of the numbers; above all of them is what is not finite.
    const int32_t top = greatest(size[0] > size[1] ? size[0] : size[1]);
    int32_t up_by = 22 + 127 - (top >> 23);
    if (up_by > 126) up_by = 126;
    float most;
    memcpy(&most, &top, sizeof most);
    if (most * power_of_two(up_by) > (float)MOST) up_by--;
    const bool finite = top < 0x7f800000;
    const float by = finite ? power_of_two(up_by) : 0.0f;
    Ints uppers = {}, lowers = {};
    for (int i = 0; i < 2; i++) {
        const Vec scaled = finite ? v[i] * by : Vec{};
        const Ints n = __builtin_convertvector(scaled + (scaled < Vec{} ? spread(-0.5f) : spread(0.5f)), Ints);
        const Ints upper = (n + 128) >> 8, a = (upper + 128) >> 8;
        uppers += upper;
        lowers += n - (upper << 8);
        *(Bytes*)(out->byte[0] + i * LANES) = __builtin_convertvector(a, Bytes);
        *(Bytes*)(out->byte[1] + i * LANES) = __builtin_convertvector(upper, Bytes);  // the lowest eight bits
        *(Bytes*)(out->byte[2] + i * LANES) = __builtin_convertvector(n, Bytes);
    }
    out->upper = total(uppers);
    out->lower = total(lowers);
    out->scale = finite ? power_of_two(-up_by) : NAN;
    out->sum = out->scale * ((float)out->upper * 256.0f + (float)out->lower);
}

static const Fixed* fixed(const float* x, int64_t ldx, int64_t rows, int64_t inputs) {
    static thread_local std::vector<Fixed> room;
    const int64_t blocks = inputs / BLOCK;
    if ((int64_t)room.size() < rows * blocks) room.resize(rows * blocks);
    for (int64_t r = 0; r < rows; r++) for (int64_t b = 0; b < blocks; b++) fix(x + r * ldx + b * BLOCK, &room[r * blocks + b]);
    return room.data();
}

// ------------------------------------------------------------------------------------------------------------ sums of a block
// Of sixteen outputs: a step takes a word of each, q times a row's numbers, byte by byte.
static inline int32_t four(const int8_t* bytes) {
    int32_t word;
    memcpy(&word, bytes, sizeof word);
    return word;
}

#if defined(__AVX512VNNI__)
template <class W>
struct Sums {
    Ints part[3] = {};
    inline void add(Words q, const int8_t* x) {
        for (int n = 0; n < 3; n++) {
            const __m512i same = _mm512_set1_epi32(four(x + n * BLOCK));
            part[n] = (Ints)_mm512_dpbusd_epi32((__m512i)part[n], (__m512i)q, same);
        }
    }
    inline void step(const uint32_t* q, const int8_t* x, int64_t k) {
        const Words word = *(const Words*)q;
        if (!W::OFFSET) return add(word, x + 4 * k);
        add(word & 0x0f0f0f0f, x + 8 * k);
        add(word >> 4 & 0x0f0f0f0f, x + 8 * k + 4);
    }
    inline Ints upper() const { return (part[0] << 8) + part[1]; }
    inline Ints lower() const { return part[2]; }
};
template <class W> static constexpr int together(int rows) { return rows <= 2 ? 4 : rows <= 4 ? 2 : 1; }  // sixteens
template <class W> static constexpr int most_rows() { return 6; }
#elif defined(__AVX2__)
// Bytes times bytes in pairs of 16 bits: eight steps of q up to 15 stay below 2^15. Greater q go in two halves of four bits.
template <class W>
struct Sums {
    static const int HALVES_OF_Q = W::OFFSET ? 1 : 2;
    __m256i part[HALVES_OF_Q][3][2] = {};
    inline void add(int h, int side, __m256i q, const int8_t* x) {
        for (int n = 0; n < 3; n++) {
            const __m256i products = _mm256_maddubs_epi16(q, _mm256_set1_epi32(four(x + n * BLOCK)));
            part[h][n][side] = _mm256_add_epi16(part[h][n][side], products);
        }
    }
    inline void step(const uint32_t* q, const int8_t* x, int64_t k) {
        const __m256i low = _mm256_set1_epi8(15);
        for (int side = 0; side < 2; side++) {
            const __m256i word = _mm256_loadu_si256((const __m256i*)q + side);
            const __m256i halves[2] = {_mm256_and_si256(word, low), _mm256_and_si256(_mm256_srli_epi16(word, 4), low)};
            for (int h = 0; h < 2; h++) add(W::OFFSET ? 0 : h, side, halves[h], x + (W::OFFSET ? 8 * k + 4 * h : 4 * k));
        }
    }
    inline Ints whole(int n) const {
        Ints sum = {};
        for (int h = HALVES_OF_Q - 1; h >= 0; h--) {
            __m256i side[2];
            for (int s = 0; s < 2; s++) side[s] = _mm256_madd_epi16(part[h][n][s], _mm256_set1_epi16(1));
            Ints both;
            memcpy(&both, side, sizeof both);
            sum = (sum << 4) + both;
        }
        return sum;
    }
    inline Ints upper() const { return (whole(0) << 8) + whole(1); }
    inline Ints lower() const { return whole(2); }
};
template <class W> static constexpr int together(int) { return 1; }
template <class W> static constexpr int most_rows() { return 1; }
#else
template <class W>
struct Sums {
    Ints part[2] = {};
    inline void step(const uint32_t* q, const int8_t* x, int64_t k) {
        const Words word = *(const Words*)q;
        const int bits = W::OFFSET ? 4 : 8;
#pragma GCC unroll 1
        for (int i = 0; i < 32 / bits; i++) {  // of eight q the first four are the lower halves of the bytes
            const Ints own = (Ints)(W::OFFSET ? word >> (8 * (i % 4) + 4 * (i / 4)) & 15 : word >> 8 * i & 255);
            const int8_t* at = x + 32 / bits * k + i;
            part[0] += own * (256 * at[0] + at[BLOCK]);
            part[1] += own * (int32_t)at[2 * BLOCK];
        }
    }
    inline Ints upper() const { return part[0]; }
    inline Ints lower() const { return part[1]; }
};
template <class W> static constexpr int together(int) { return 1; }
template <class W> static constexpr int most_rows() { return 1; }
#endif

// R rows times P sixteens of one unit of `width` outputs, from output `at` on; acc [R][64] holds the sums so far.
template <int P, int R, class W>
static inline void block(const char* w, int64_t width, int64_t at, const Fixed* x, int64_t blocks, float* acc) {
    for (int64_t b = 0; b < blocks; b++) {
        const float* d = (const float*)(w + b * W::BYTES * width) + at;
        const uint32_t* q = (const uint32_t*)d + (W::OFFSET ? 2 : 1) * width;
        // The first pass over a unit asks for all of it.
        if (at == 0) for (const float* own = d; own < (const float*)q; own += LANES) ahead(own);
        int64_t here[P];  // each sixteen reads x by itself, as an operand: the compiler would read it once for all, into registers
        for (int p = 0; p < P; p++) {
            here[p] = b * (int64_t)sizeof(Fixed);
            if (WIDE) asm volatile("" : "+r"(here[p]));
        }
        Sums<W> sums[R][P];
#pragma GCC unroll 8
        for (int64_t k = 0; k < W::WORDS; k++, q += width) {
            if (at == 0) for (int64_t lane = 0; lane < width; lane += LANES) ahead(q + lane);
            for (int p = 0; p < P; p++) for (int r = 0; r < R; r++) sums[r][p].step(q + p * LANES, x[r * blocks].byte[0] + here[p], k);
        }
        for (int p = 0; p < P; p++) {
            const Vec scale = load(d + p * LANES);
            for (int r = 0; r < R; r++) {
                const Fixed& own = x[r * blocks + b];
                Ints upper = sums[r][p].upper(), lower = sums[r][p].lower();
                Vec whole = load(acc + r * UNIT + p * LANES);
                if (W::OFFSET) whole += load(d + width + p * LANES) * own.sum;
                else { upper -= 128 * own.upper; lower -= 128 * own.lower; }
                whole += (__builtin_convertvector(upper, Vec) * 256.0f + __builtin_convertvector(lower, Vec)) * (scale * own.scale);
                store(acc + r * UNIT + p * LANES, whole);
            }
        }
    }
}

template <int R, class W>
static inline void unit_rows(const char* w, int sixteens, const Fixed* x, int64_t blocks, float* acc) {
    const int64_t width = sixteens * LANES;
    constexpr int most = together<W>(R);
    int p = 0;
    for (; p + most <= sixteens; p += most) block<most, R, W>(w, width, p * LANES, x, blocks, acc + p * LANES);
    for (; p < sixteens; p++) block<1, R, W>(w, width, p * LANES, x, blocks, acc + p * LANES);
}

template <class W>
static void some_rows(const char* w, int sixteens, const Fixed* x, int64_t rows, int64_t blocks, float* acc) {
    constexpr int most = most_rows<W>();
    for (; rows > 0; rows -= most, x += most * blocks, acc += most * UNIT) switch (rows < most ? rows : most) {
        case 1: unit_rows<1, W>(w, sixteens, x, blocks, acc); break;
        case 2: unit_rows<most < 2 ? most : 2, W>(w, sixteens, x, blocks, acc); break;
        case 3: unit_rows<most < 3 ? most : 3, W>(w, sixteens, x, blocks, acc); break;
        case 4: unit_rows<most < 4 ? most : 4, W>(w, sixteens, x, blocks, acc); break;
        case 5: unit_rows<most < 5 ? most : 5, W>(w, sixteens, x, blocks, acc); break;
        default: unit_rows<most, W>(w, sixteens, x, blocks, acc);
    }
}

// Rows times a matrix. Its outputs lie in units of 64, the last as wide as it needs to be, in sixteens: [unit][input][64] in
// float32 or bfloat16, [unit][block of 32 inputs] in blocks.

#pragma once
#include "blocks.h"
#include "threads.h"

struct Matrix { const void* data; const float* bias; int64_t inputs, outputs, kind; };  // kind: FLOATS ...

// R rows times P sixteens of one unit of `width` outputs, inputs [from, to); `acc` [R][64] holds the sums so far.
template <int P, int R, class W>
static inline void block(const W* w, int64_t width, const float* x, int64_t ldx, int64_t from, int64_t to, float* acc) {
    Vec sum[R][P];
    for (int r = 0; r < R; r++) for (int p = 0; p < P; p++) sum[r][p] = load(acc + r * UNIT + p * LANES);
    for (int64_t i = from; i < to; i++) {
        const W* line = w + i * width;
        Vec own[P];
        for (int p = 0; p < P; p++) {
            own[p] = weights(line + p * LANES);
            __builtin_prefetch((const char*)(line + p * LANES) + 4096, 0, 3);
        }
        for (int r = 0; r < R; r++) {
            Vec s = spread(x[r * ldx + i]);
            for (int p = 0; p < P; p++) sum[r][p] += own[p] * s;
        }
    }
    for (int r = 0; r < R; r++) for (int p = 0; p < P; p++) store(acc + r * UNIT + p * LANES, sum[r][p]);
}

// As many sixteens at once as the registers hold beside R rows; inputs in pieces, so that a unit's piece stays in the first cache.
template <int R, class W>
static inline void unit_rows(const W* w, int sixteens, const float* x, int64_t ldx, int64_t inputs, float* acc) {
    const int64_t width = sixteens * LANES;
    const int most = WIDE ? 4 : R == 1 ? 4 : R <= 3 ? 2 : 1;
    const int64_t piece = most >= sixteens ? inputs : 64;
    for (int64_t from = 0; from < inputs; from += piece) {
        const int64_t to = from + piece < inputs ? from + piece : inputs;
        int p = 0;
        if (most >= 4) for (; p + 4 <= sixteens; p += 4) {
            block<(WIDE || R == 1) ? 4 : 1, R>(w + p * LANES, width, x, ldx, from, to, acc + p * LANES);
        }
        if (most >= 2) for (; p + 2 <= sixteens; p += 2) {
            block<(WIDE || R <= 3) ? 2 : 1, R>(w + p * LANES, width, x, ldx, from, to, acc + p * LANES);
        }
        for (; p < sixteens; p++) block<1, R>(w + p * LANES, width, x, ldx, from, to, acc + p * LANES);
    }
}

template <class W>
static void some_rows(const W* w, int sixteens, const float* x, int64_t ldx, int64_t rows, int64_t inputs, float* acc) {
    switch (rows) {
        case 1: return unit_rows<1>(w, sixteens, x, ldx, inputs, acc);
        case 2: return unit_rows<2>(w, sixteens, x, ldx, inputs, acc);
        case 3: return unit_rows<3>(w, sixteens, x, ldx, inputs, acc);
        case 4: return unit_rows<4>(w, sixteens, x, ldx, inputs, acc);
        case 5: return unit_rows<5>(w, sixteens, x, ldx, inputs, acc);
        default: return unit_rows<6>(w, sixteens, x, ldx, inputs, acc);
    }
}

static const int64_t BLOCK_BYTES[] = {4 * BLOCK, 2 * BLOCK, FourBits::BYTES, EightBits::BYTES};  // of 32 inputs of an output

// Each unit of 64 outputs for all rows; `then(row, first output, sixteens, sums)` takes them away.
template <class Then>
static void multiply(const Team& team, const Matrix& m, const float* x, int64_t ldx, int64_t rows, Then then) {
    const int64_t sixteens = up(m.outputs, LANES) / LANES, units = (sixteens + 3) / 4, blocks = m.inputs / BLOCK;
    int64_t first, last;
    team.share(units, &first, &last);
    const Fixed* in_blocks = m.kind >= FOUR_BITS && first < last ? fixed(x, ldx, rows, m.inputs) : nullptr;
    for (int64_t u = first; u < last; u++) {
        const int wide = sixteens - 4 * u < 4 ? (int)(sixteens - 4 * u) : 4;
        const char* data = (const char*)m.data + u * UNIT * m.inputs / BLOCK * BLOCK_BYTES[m.kind];
        for (int64_t r = 0; r < rows; r += 6) {
            const int64_t some = rows - r < 6 ? rows - r : 6;
            alignas(64) float acc[6 * UNIT];
            for (int64_t k = 0; k < some; k++) for (int p = 0; p < wide; p++)
                store(acc + k * UNIT + p * LANES, m.bias ? load(m.bias + u * UNIT + p * LANES) : Vec{});
            const float* own = x + r * ldx;
            switch (m.kind) {
                case FLOATS: some_rows((const float*)data, wide, own, ldx, some, m.inputs, acc); break;
                case HALVES: some_rows((const uint16_t*)data, wide, own, ldx, some, m.inputs, acc); break;
                case FOUR_BITS: some_rows<FourBits>(data, wide, in_blocks + r * blocks, some, blocks, acc); break;
                default: some_rows<EightBits>(data, wide, in_blocks + r * blocks, some, blocks, acc);
            }
            for (int64_t k = 0; k < some; k++) then(r + k, u * UNIT, wide, acc + k * UNIT);
        }
    }
}

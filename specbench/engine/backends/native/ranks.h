// The greatest scores of rows and the logarithms of their totals.

#pragma once
#include <atomic>
#include <vector>

#include "threads.h"
#include "vectors.h"

struct Asked {                      // as ranks.py lays it out: thirteen words, which one conversion hands over
    const float* scores;
    int64_t ld, outputs;            // each row `ld` numbers behind the last
    const int64_t *rows, *names;    // which, or null for the first ones; what columns are called, or null for their numbers
    const double* above;            // by row, added to its log-probabilities; or null
    int64_t count, k;               // of rows, and of the greatest of each
    int64_t* ids;
    float* values;                  // null where nobody asks, as
    double* log_probs;              // of the greatest: value - total, at most 0, and as
    float* totals;
    int64_t threads;
};

struct Ranks : Asked {
    std::atomic<bool> broken;       // a NaN was met, or a sum that makes no law
};

static inline bool any(Ints seen) {
    uint64_t word[8], all = 0;
    memcpy(word, &seen, sizeof seen);
    for (uint64_t w : word) all |= w;
    return all;
}

// The greatest of a row and its place, sixteen numbers at a time and in the order of their places.
struct First {
    Vec height;
    Ints place, odd;  // odd: a NaN was met
    void clear() { height = spread(-INFINITY); place = odd = Ints{}; }
    void offer(Vec v, int64_t at, int64_t n) {  // places from `at` on, those from n on being nobody's
        const Ints here = Ints{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + (int32_t)at;
        if (at + LANES > n) v = here < (int32_t)n - Ints{} ? v : spread(-INFINITY);
        const Ints higher = v > height;
        height = higher ? v : height;
        place = higher ? here : place;
        odd |= v != v;
    }
};

// Of `count` threads' firsts of a row, `ld` from thread to thread: the id, -1 where the row makes no law.
static inline int64_t first_of(const First* best, int64_t ld, int64_t count) {
    float high = -INFINITY;
    int64_t place = INT64_MAX;
    bool odd = false;
    for (int64_t t = 0; t < count; t++) {
        const First& own = best[t * ld];
        odd = odd || any(own.odd);
        for (int a = 0; a < LANES; a++) {
            if (own.height[a] < high || (own.height[a] == high && own.place[a] >= place)) continue;
            high = own.height[a];
            place = own.place[a];
        }
    }
    return odd || !std::isfinite(high) ? -1 : place;
}

// The k greatest of a row, best first, of equals the smaller id first. False: there is a NaN.
static bool greatest(const float* z, int64_t n, int64_t k, float* best, int64_t* ids) {
    const int64_t VECS = 16;  // at one look
    int64_t held = 0, i = 0;
    Ints odd = {};
    auto offer = [&](int64_t from, int64_t to) {
        for (int64_t j = from; j < to; j++) {
            const float v = z[j];
            if (held == k && !(v > best[k - 1])) continue;
            int64_t at = held < k ? held++ : k - 1;
            for (; at > 0 && v > best[at - 1]; at--) { best[at] = best[at - 1]; ids[at] = ids[at - 1]; }
            best[at] = v;
            ids[at] = j;
        }
    };
    for (; i + VECS * LANES <= n; i += VECS * LANES) {
        Vec high[4];
        for (int64_t a = 0; a < 4; a++) { high[a] = load(z + i + a * LANES); odd |= high[a] != high[a]; }
        for (int64_t v = 4; v < VECS; v++) {
            const Vec x = load(z + i + v * LANES);
            odd |= x != x;
            high[v % 4] = x > high[v % 4] ? x : high[v % 4];
        }
        if (held == k) {
            const Vec bar = spread(best[k - 1]);
            if (!any((high[0] > bar) | (high[1] > bar) | (high[2] > bar) | (high[3] > bar))) continue;
        }
        for (int64_t at = i; at < i + VECS * LANES; at += LANES)
            if (held < k || any(load(z + at) > spread(best[k - 1]))) offer(at, at + LANES);
    }
    for (int64_t j = i; j < n; j++) if (z[j] != z[j]) return false;
    offer(i, n);
    return !any(odd);
}

// e^x of x up to 0 for a sum to which the greatest adds 1: what lies below e^-87 is that. The power of two is found by adding
// 1.5 * 2^23, whose last bits then are the whole number, and is added to the exponent's bits.
static inline Vec below_one(Vec x) {
    x = x > spread(-87.0f) ? x : spread(-87.0f);
    const Vec shifted = x * 1.44269504088896341f + 12582912.0f;
    return (Vec)((Ints)of_rest(x, shifted - 12582912.0f) + ((Ints)shifted << 23));
}

// The logarithm of the sum of a row's exponentials, `top` being its greatest; NaN where they make no law.
static float log_total(const float* z, int64_t n, float top) {
    if (!std::isfinite(top)) return NAN;
    Vec sums[4] = {};
    int64_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES)
        for (int a = 0; a < 4; a++) sums[a] += below_one(load(z + i + a * LANES) - top);
    double sum = 0.0;
    for (Vec& part : sums) for (int a = 0; a < LANES; a++) sum += part[a];
    for (; i < n; i++) sum += std::exp((double)z[i] - top);
    return (float)(top + std::log(sum));
}

static void ranks_team(void* given, Team team) {
    Ranks& w = *(Ranks*)given;
    int64_t first, last;
    team.share(w.count, &first, &last);
    std::vector<float> own(w.values ? 0 : w.k);
    for (int64_t r = first; r < last; r++) {
        const float* z = w.scores + (w.rows ? w.rows[r] : r) * w.ld;
        float* values = w.values ? w.values + r * w.k : own.data();
        int64_t* ids = w.ids + r * w.k;
        if (!greatest(z, w.outputs, w.k, values, ids)) { w.broken = true; continue; }
        if (w.names) {  // a name that is missing is behind all that are finite, so the last one decides whether any could be due
            if (values[w.k - 1] == -INFINITY) w.broken = true;
            for (int64_t j = 0; j < w.k; j++) ids[j] = w.names[ids[j]];
        }
        if (!w.totals && !w.log_probs) continue;
        const float total = log_total(z, w.outputs, values[0]);
        if (total != total) w.broken = true;
        if (w.totals) w.totals[r] = total;
        if (w.log_probs) for (int64_t j = 0; j < w.k; j++) {
            const double own = (double)values[j] - (double)total;  // rounding must not make it a probability above 1
            w.log_probs[r * w.k + j] = (w.above ? w.above[r] : 0.0) + (own < 0.0 ? own : 0.0);
        }
    }
}

// Whether every row gave its answer; only then there are any.
extern "C" int64_t sb_ranks(const Asked* asked) {
    Ranks w = {*asked, {false}};
    pool().run(ranks_team, &w, w.outputs * w.count < 65536 ? 1 : (int)w.threads);
    return !w.broken;
}

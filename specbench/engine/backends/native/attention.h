// The model as Python hands it over, and of a layer what lies between its matrices: norms, rotation, keys and values, attention.

#pragma once
#include <cstdlib>

#include "matrices.h"
#include "ranks.h"

extern "C" {
struct Layer {
    const float *norm_1, *norm_2, *norm_q, *norm_k;
    Matrix qkv, out, gate_up, down;  // gate_up: 32 outputs of the gate and the 32 of up beside them, in turn
    int64_t window;                  // 0: sees everything
};
struct Model {
    int64_t layers, width, inner, heads, kv_heads, head_dim;
    float eps, scale, embed_factor, residual_factor, logit_divisor;
    const float *embed, *norm;  // [ids][width], [width]
    const Layer* layer;
    Matrix head;
};
struct Forward {
    int64_t rows, past, trunk, threads, capacity;
    const int64_t* ids;      // or null, and then `states` [rows][width] enter the first of the layers
    const float* states;
    const int64_t* parents;  // of all rows behind the trunk, [past - trunk + rows], -1 the trunk; null: a chain
    const int64_t* depths;   // places behind the trunk of the same rows; null: their parents' plus one
    const int64_t* layers;   // numbers of the layers to run
    int64_t num_layers;
    float* const* keys;      // by layer number
    float* const* values;
    const float *cosines, *sines;  // [position][head_dim / 2]
    float* const* taps;      // by place in `layers`, what enters it, [rows][width], or null; the last: behind the final norm
    float* last;             // [rows][width], as the last layer leaves them, or null
    float* logits;           // [rows - first_logit][outputs of the head in sixteens], or null
    int64_t first_logit;
    const int64_t* kept;     // what `sb_keep` would do first, done by each layer when its turn comes: its keys are read then anyway
    int64_t num_kept, kept_from;
    int64_t* firsts;         // by answered row, the id of the greatest of its first `num_ranked` logits, of equals the smaller;
                             // -1 where they make no law. Or null
    int64_t num_ranked;
};
}

static inline void rms_norm(const float* x, const float* w, int64_t n, float eps, float* y) {
    Vec squares = {};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) { Vec v = load(x + i); squares += v * v; }
    float sum = total(squares);
    for (; i < n; i++) sum += x[i] * x[i];
    const float by = 1.0f / std::sqrt(sum / (float)n + eps);
    for (i = 0; i < n; i++) y[i] = w[i] * (x[i] * by);
}

template <int Q, int B>  // Q queries, B blocks of 16 keys at once
static inline void score_blocks(const float* const* q, const float* keys, int64_t dim, float scale, float* const* z, int64_t at) {
    Vec even[Q][B], odd[Q][B];
    for (int a = 0; a < Q; a++) for (int b = 0; b < B; b++) even[a][b] = odd[a][b] = Vec{};
    for (int64_t i = 0; i < dim; i += 2) for (int b = 0; b < B; b++) {
        const float* k = keys + b * dim * LANES + i * LANES;
        Vec first = load(k), second = load(k + LANES);
        near(k);
        near(k + LANES);
        for (int a = 0; a < Q; a++) { even[a][b] += first * spread(q[a][i]); odd[a][b] += second * spread(q[a][i + 1]); }
    }
    for (int a = 0; a < Q; a++) for (int b = 0; b < B; b++) store(z[a] + at + b * LANES, (even[a][b] + odd[a][b]) * scale);
}
template <int Q>
static void score(const float* const* q, const float* keys, int64_t from, int64_t to, int64_t dim, float scale, float* const* z) {
    const int B = Q == 1 ? 4 : Q == 2 ? 2 : 1;
    int64_t b = from;
    for (; b + B <= to; b += B) score_blocks<Q, B>(q, keys + b * dim * LANES, dim, scale, z, b * LANES);
    for (; b < to; b++) score_blocks<Q, 1>(q, keys + b * dim * LANES, dim, scale, z, b * LANES);
}

// out [4][Q][dim in sixteens] += p[t] * values[t]; place t of a query's path goes to sum t % 4.
template <int Q, int N>
static inline void mix_lanes(const float* const* p, const float* values, int64_t ld, int64_t from, int64_t to, float* const* out) {
    Vec sum[4][Q][N];
    for (int s = 0; s < 4; s++) for (int a = 0; a < Q; a++) for (int n = 0; n < N; n++)
        sum[s][a][n] = load(out[a] + s * ld + n * LANES);
    int64_t t = from;
    for (; t < to && t % 4; t++) for (int n = 0; n < N; n++) for (int a = 0; a < Q; a++)
        sum[t % 4][a][n] += load(values + t * ld + n * LANES) * spread(p[a][t]);
    for (; t + 4 <= to; t += 4) for (int s = 0; s < 4; s++) for (int n = 0; n < N; n++) {
        Vec v = load(values + (t + s) * ld + n * LANES);
        near(values + (t + s) * ld + n * LANES);
        for (int a = 0; a < Q; a++) sum[s][a][n] += v * spread(p[a][t + s]);
    }
    for (; t < to; t++) for (int n = 0; n < N; n++) for (int a = 0; a < Q; a++)
        sum[t % 4][a][n] += load(values + t * ld + n * LANES) * spread(p[a][t]);
    for (int s = 0; s < 4; s++) for (int a = 0; a < Q; a++) for (int n = 0; n < N; n++)
        store(out[a] + s * ld + n * LANES, sum[s][a][n]);
}
template <int Q>
static void mix(const float* const* p, const float* values, int64_t ld, int64_t from, int64_t to, float* const* out) {
    const int N = WIDE ? (Q == 1 ? 4 : Q == 2 ? 2 : 1) : Q == 1 ? 2 : 1;
    int64_t n = 0;
    float* at[Q];
    for (; n + N * LANES <= ld; n += N * LANES) {
        for (int a = 0; a < Q; a++) at[a] = out[a] + n;
        mix_lanes<Q, N>(p, values + n, ld, from, to, at);
    }
    for (; n < ld; n += LANES) {
        for (int a = 0; a < Q; a++) at[a] = out[a] + n;
        mix_lanes<Q, 1>(p, values + n, ld, from, to, at);
    }
}

struct Work {  // of one forward: its rows' states, and each thread's own room
    const Model* m;
    const Forward* f;
    float *h, *x, *qkv, *mixed, *act, *own;
    First* best;  // of each thread's outputs, by row of a chunk
    int64_t ld_width, ld_qkv, ld_mixed, ld_inner, ld_own;
};

struct Query { int64_t row, position; const float* q; float* out; };

// Up to four queries of one kv head. Their common keys stand at slots [0, common); behind them each goes along its own path.
template <int Q>
static void attend(const Work& w, const Layer& layer, const Query* query, const float* K, const float* V, int64_t common,
                   float* room) {
    const Model& m = *w.m;
    const Forward& f = *w.f;
    const int64_t dim = m.head_dim, ld = up(dim, LANES), span = up(f.capacity, LANES) + LANES;
    const float* q[Q];
    float *z[Q], *sums[Q];
    int64_t length[Q], start[Q], *path[Q], low = common, high = 0;
    int64_t* paths = (int64_t*)(room + Q * span + Q * 4 * ld);
    for (int a = 0; a < Q; a++) {
        q[a] = query[a].q;
        z[a] = room + a * span;
        sums[a] = room + Q * span + a * 4 * ld;
        path[a] = paths + a * f.capacity;
        start[a] = layer.window ? query[a].position - layer.window + 1 : 0;
        if (start[a] < 0) start[a] = 0;
        if (start[a] < low) low = start[a];
        const int64_t slot = f.past + query[a].row;
        int64_t n = common;
        if (!f.parents) for (int64_t t = common; t <= slot; t++) path[a][n++] = t;
        else {
            for (int64_t i = slot - f.trunk; i >= 0; i = f.parents[i]) n++;
            int64_t t = n;
            for (int64_t i = slot - f.trunk; i >= 0; i = f.parents[i]) path[a][--t] = f.trunk + i;
        }
        length[a] = n;
        if (slot + 1 > high) high = slot + 1;
    }
    const int64_t first = low / LANES;
    score<Q>(q, K, first, (high + LANES - 1) / LANES, dim, m.scale, z);
    for (int a = 0; a < Q; a++) {
        // A path's slots ascend and none lies below its place: moving them down overwrites nothing that is still wanted.
        for (int64_t t = common; t < length[a]; t++) {
            const int64_t at = path[a][t], key = f.depths && at >= f.trunk ? f.trunk + f.depths[at - f.trunk] : at;
            z[a][t] = layer.window && query[a].position - key >= layer.window ? NOWHERE : z[a][at];
        }
        for (int64_t t = first * LANES; t < start[a] && t < common; t++) z[a][t] = NOWHERE;
        const int64_t end = up(length[a], LANES);
        for (int64_t t = length[a]; t < end; t++) z[a][t] = NOWHERE;
        Vec best = spread(NOWHERE), sum = {};
        for (int64_t t = first * LANES; t < end; t += LANES) { Vec v = load(z[a] + t); best = v > best ? v : best; }
        const float top = largest(best);
        for (int64_t t = first * LANES; t < end; t += LANES) {
            Vec v = load(z[a] + t);
            v = exponential(v > spread(0.5f * NOWHERE) ? v - top : v);
            store(z[a] + t, v);
            sum += v;
        }
        const float by = 1.0f / total(sum);
        for (int64_t i = 0; i < 4 * ld; i++) sums[a][i] = 0.0f;
        query[a].out[0] = by;  // kept until the sums are there
    }
    mix<Q>(z, V, ld, low, common, sums);
    for (int a = 0; a < Q; a++) {
        for (int64_t t = common; t < length[a]; t++) {
            const float* v = V + path[a][t] * ld;
            float* s = sums[a] + (t % 4) * ld;
            for (int64_t n = 0; n < ld; n += LANES) store(s + n, load(s + n) + load(v + n) * spread(z[a][t]));
        }
        const float by = query[a].out[0];
        for (int64_t n = 0; n < dim; n++) {
            const float* s = sums[a] + n;
            query[a].out[n] = ((s[0] + s[ld]) + (s[2 * ld] + s[3 * ld])) * by;
        }
    }
}

static inline int64_t position_of(const Forward& f, int64_t row) {
    return f.depths ? f.trunk + f.depths[f.past - f.trunk + row] : f.past + row;
}

static void attention(const Team& team, const Work& w, const Layer& layer, int64_t number, int64_t row0, int64_t rows) {
    const Model& m = *w.m;
    const Forward& f = *w.f;
    const int64_t dim = m.head_dim, ld = up(dim, LANES), group = m.heads / m.kv_heads, capacity = up(f.capacity, LANES);
    const int64_t batches = (rows * group + QUERIES - 1) / QUERIES;
    float* room = w.own + team.rank * w.ld_own;
    int64_t first, last;
    team.share(m.kv_heads * batches, &first, &last);
    for (int64_t task = first; task < last; task++) {
        const int64_t kv = task / batches, from = task % batches * QUERIES;
        const int64_t count = rows * group - from < QUERIES ? rows * group - from : QUERIES;
        Query query[QUERIES];
        for (int64_t a = 0; a < count; a++) {
            const int64_t row = (from + a) / group, head = kv * group + (from + a) % group;
            query[a] = {row0 + row, position_of(f, row0 + row), w.qkv + row * w.ld_qkv + head * dim,
                        w.mixed + row * w.ld_mixed + head * dim};
        }
        const int64_t common = f.parents ? f.trunk : f.past + query[0].row;
        const float *K = f.keys[number] + kv * capacity * dim, *V = f.values[number] + kv * capacity * ld;
        switch (count) {
            case 1: attend<1>(w, layer, query, K, V, common, room); break;
            case 2: attend<2>(w, layer, query, K, V, common, room); break;
            case 3: attend<3>(w, layer, query, K, V, common, room); break;
            default: attend<4>(w, layer, query, K, V, common, room);
        }
    }
}

// Of the positions from `start` on keep `rows` (relative, ascending), packed together: one kv head of one layer.
static void keep(const Model& m, float* K, float* V, int64_t start, const int64_t* rows, int64_t count) {
    const int64_t dim = m.head_dim, ld = up(dim, LANES);
    for (int64_t r = 0; r < count; r++) {
        const int64_t from = start + rows[r], to = start + r;
        if (from == to) continue;
        const float* k = K + from / LANES * dim * LANES + from % LANES;
        float* kept = K + to / LANES * dim * LANES + to % LANES;
        for (int64_t i = 0; i < dim; i++) kept[i * LANES] = k[i * LANES];
        memcpy(V + to * ld, V + from * ld, ld * sizeof(float));
    }
}

// Queries and keys are normed and turned; keys and values go to their slots.
static void place(const Team& team, const Work& w, const Layer& layer, int64_t number, int64_t row0, int64_t rows) {
    const Model& m = *w.m;
    const Forward& f = *w.f;
    const int64_t dim = m.head_dim, half = dim / 2, ld = up(dim, LANES), capacity = up(f.capacity, LANES);
    int64_t first, last;
    team.share(rows, &first, &last);
    for (int64_t r = first; r < last; r++) {
        const int64_t slot = f.past + row0 + r, position = position_of(f, row0 + r);
        const float *c = f.cosines + position * half, *s = f.sines + position * half;
        float* row = w.qkv + r * w.ld_qkv;
        for (int64_t n = 0; n < m.heads + m.kv_heads; n++) {
            float* q = row + n * dim;
            const float* norm = n < m.heads ? layer.norm_q : layer.norm_k;
            if (norm) rms_norm(q, norm, dim, m.eps, q);
            for (int64_t i = 0; i < half; i++) {
                const float a = q[i], b = q[i + half];
                q[i] = a * c[i] - b * s[i];
                q[i + half] = b * c[i] + a * s[i];
            }
            if (n < m.heads) continue;
            float* k = f.keys[number] + (n - m.heads) * capacity * dim + slot / LANES * dim * LANES + slot % LANES;
            for (int64_t i = 0; i < dim; i++) k[i * LANES] = q[i];
        }
        for (int64_t n = 0; n < m.kv_heads; n++) {
            float* v = f.values[number] + (n * capacity + slot) * ld;
            const float* from = row + (m.heads + m.kv_heads + n) * dim;
            for (int64_t i = 0; i < dim; i++) v[i] = from[i];
            for (int64_t i = dim; i < ld; i++) v[i] = 0.0f;
        }
    }
}

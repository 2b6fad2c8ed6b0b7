// One forward of a Llama-shaped decoder over n rows, in float32.
//
// Every sum has one order, whatever the number of rows or threads and wherever a row's ancestors lie in the cache: an output of
// a matrix is one chain over its inputs, of fused multiply-adds, or in blocks of 32 (blocks.h) over exact sums of those; a score
// is one pair of chains over the head's width, and a row's keys are counted by their place on its own path. So a row's logits
// are bit for bit those of feeding its path one by one.
//
// Keys: [kv head][position / 16][head_dim][16]. Values: [kv head][position][head_dim padded to sixteens].

#include "attention.h"

static void chunk(Team& team, const Work& w, int64_t row0, int64_t rows) {
    const Model& m = *w.m;
    const Forward& f = *w.f;
    int64_t first, last;
    team.share(rows, &first, &last);
    for (int64_t r = first; r < last; r++) {
        float* h = w.h + r * w.ld_width;
        if (!f.ids) memcpy(h, f.states + (row0 + r) * m.width, m.width * sizeof(float));
        else memcpy(h, m.embed + f.ids[row0 + r] * m.width, m.width * sizeof(float));
        if (m.embed_factor != 1.0f && (f.ids || (f.num_layers && f.layers[0] == 0))) for (int64_t i = 0; i < m.width; i++) h[i] *= m.embed_factor;
    }
    const float part = m.residual_factor;
    auto add = [&](int64_t row, int64_t at, int sixteens, const float* sums) {
        float* h = w.h + row * w.ld_width + at;
        for (int p = 0; p < sixteens; p++) store(h + p * LANES, load(h + p * LANES) + load(sums + p * LANES) * part);
    };
    for (int64_t n = 0; n < f.num_layers; n++) {
        const Layer& layer = m.layer[f.layers[n]];
        for (int64_t r = first; r < last; r++) {
            const float* h = w.h + r * w.ld_width;
            if (f.taps && f.taps[n]) memcpy(f.taps[n] + (row0 + r) * m.width, h, m.width * sizeof(float));
            rms_norm(h, layer.norm_1, m.width, m.eps, w.x + r * w.ld_width);
        }
        if (f.num_kept && !row0) {  // before any new row takes a place that one of these leaves
            const int64_t dim = m.head_dim, capacity = up(f.capacity, LANES), number = f.layers[n];
            int64_t kv, end;
            team.share(m.kv_heads, &kv, &end);
            for (; kv < end; kv++) {
                float *K = f.keys[number] + kv * capacity * dim, *V = f.values[number] + kv * capacity * up(dim, LANES);
                keep(m, K, V, f.kept_from, f.kept, f.num_kept);
            }
        }
        team.meet();
        multiply(team, layer.qkv, w.x, w.ld_width, rows, [&](int64_t row, int64_t at, int sixteens, const float* sums) {
            memcpy(w.qkv + row * w.ld_qkv + at, sums, sixteens * LANES * sizeof(float));
        });
        team.meet();
        place(team, w, layer, f.layers[n], row0, rows);
        team.meet();
        attention(team, w, layer, f.layers[n], row0, rows);
        team.meet();
        multiply(team, layer.out, w.mixed, w.ld_mixed, rows, add);
        team.meet();
        for (int64_t r = first; r < last; r++) rms_norm(w.h + r * w.ld_width, layer.norm_2, m.width, m.eps, w.x + r * w.ld_width);
        team.meet();
        multiply(team, layer.gate_up, w.x, w.ld_width, rows, [&](int64_t row, int64_t at, int, const float* sums) {
            for (int p = 0; p < 2; p++) {
                const Vec gate = load(sums + p * LANES), beside = load(sums + (2 + p) * LANES);
                store(w.act + row * w.ld_inner + at / 2 + p * LANES, gate / (1.0f + exponential(-gate)) * beside);
            }
        });
        team.meet();
        multiply(team, layer.down, w.act, w.ld_inner, rows, add);
        team.meet();
    }
    if (!f.last && !f.logits && !(f.taps && f.taps[f.num_layers])) return;
    for (int64_t r = first; r < last; r++) {
        const float* h = w.h + r * w.ld_width;
        if (f.last) memcpy(f.last + (row0 + r) * m.width, h, m.width * sizeof(float));
        rms_norm(h, m.norm, m.width, m.eps, w.x + r * w.ld_width);
        if (f.taps && f.taps[f.num_layers]) {
            memcpy(f.taps[f.num_layers] + (row0 + r) * m.width, w.x + r * w.ld_width, m.width * sizeof(float));
        }
    }
    team.meet();
    const int64_t skip = f.first_logit > row0 ? f.first_logit - row0 : 0;
    if (f.logits && skip < rows) {
        const int64_t ld = up(m.head.outputs, LANES), at_row = row0 + skip - f.first_logit;
        First* best = w.best + team.rank * CHUNK;
        for (int64_t r = 0; r < rows - skip; r++) best[r].clear();
        multiply(team, m.head, w.x + skip * w.ld_width, w.ld_width, rows - skip,
                 [&](int64_t row, int64_t at, int sixteens, const float* sums) {
            float* z = f.logits + (at_row + row) * ld + at;
            if (m.logit_divisor == 1.0f) memcpy(z, sums, sixteens * LANES * sizeof(float));
            else for (int i = 0; i < sixteens * LANES; i++) z[i] = sums[i] / m.logit_divisor;
            if (f.firsts) for (int p = 0; p < sixteens; p++) best[row].offer(load(z + p * LANES), at + p * LANES, f.num_ranked);
        });
        team.meet();
        if (f.firsts && !team.rank) for (int64_t r = 0; r < rows - skip; r++) {  // the others meet it before they use theirs again
            f.firsts[at_row + r] = first_of(w.best + r, CHUNK, team.size);
        }
    } else {
        team.meet();
    }
}

static void forward_team(void* given, Team team) {
    const Work& w = *(const Work*)given;
    for (int64_t row = 0; row < w.f->rows; row += CHUNK) {
        chunk(team, w, row, w.f->rows - row < CHUNK ? w.f->rows - row : CHUNK);
    }
}

extern "C" void sb_forward(const Model* m, const Forward* given) {
    static thread_local std::vector<float> kept;
    static thread_local std::vector<int64_t> depths;
    static thread_local std::vector<First> best;
    Forward own = *given;
    const Forward* f = &own;
    if (f->parents && !f->depths) {
        const int64_t below = f->past - f->trunk + f->rows;
        depths.resize(below);
        for (int64_t i = 0; i < below; i++) depths[i] = f->parents[i] < 0 ? 0 : depths[f->parents[i]] + 1;
        own.depths = depths.data();
    }
    const int64_t rows = f->rows < CHUNK ? f->rows : CHUNK;
    Work w;
    w.m = m;
    w.f = f;
    w.ld_width = up(m->width, LANES);
    w.ld_qkv = up((m->heads + 2 * m->kv_heads) * m->head_dim, LANES);
    w.ld_mixed = up(m->heads * m->head_dim, LANES);
    w.ld_inner = up(m->inner, 32);
    const int64_t ld = up(m->head_dim, LANES), span = up(f->capacity, LANES) + LANES;
    w.ld_own = up(QUERIES * (span + 4 * ld + 2 * f->capacity), LANES) + LANES;
    const int64_t threads = f->threads > 1 ? f->threads : 1;
    const size_t wanted = rows * (2 * w.ld_width + w.ld_qkv + w.ld_mixed + w.ld_inner) + threads * w.ld_own + LANES;
    if (kept.size() < wanted) kept.assign(wanted, 0.0f);
    if ((int64_t)best.size() < threads * CHUNK) best.resize(threads * CHUNK);
    w.best = best.data();
    float* at = (float*)up((int64_t)kept.data(), 64);
    w.h = at;
    w.x = w.h + rows * w.ld_width;
    w.qkv = w.x + rows * w.ld_width;
    w.mixed = w.qkv + rows * w.ld_qkv;
    w.act = w.mixed + rows * w.ld_mixed;
    w.own = w.act + rows * w.ld_inner;
    pool().run(forward_team, &w, (int)threads);
}

// Feeds rows and then, one by one, what it says itself behind them: `length` tokens, of which the last is not fed. How many follow
// from logits that make a law; `firsts` holds one number, `logits` one row. names: the head's ids, or null for all in order.
extern "C" int64_t sb_chain(const Model* m, const Forward* given, const int64_t* names, int64_t length, int64_t* tokens) {
    Forward f = *given;
    for (int64_t n = 0; n < length; n++) {
        f.first_logit = f.rows - 1;
        sb_forward(m, &f);
        if (*f.firsts < 0) return n;
        tokens[n] = names ? names[*f.firsts] : *f.firsts;
        f.past = f.trunk = f.past + f.rows;
        f.ids = tokens + n;
        f.rows = 1;
        f.num_kept = 0;
    }
    return length;
}

struct Linear { const Matrix* m; const float* x; float* y; int64_t rows; };

static void linear_team(void* given, Team team) {
    const Linear& w = *(const Linear*)given;
    const int64_t ld = up(w.m->outputs, LANES);
    multiply(team, *w.m, w.x, w.m->inputs, w.rows, [&](int64_t row, int64_t at, int sixteens, const float* sums) {
        memcpy(w.y + row * ld + at, sums, sixteens * LANES * sizeof(float));
    });
}

// One matrix alone: y [rows][outputs in sixteens] of x [rows][inputs].
extern "C" void sb_linear(const Matrix* m, const float* x, int64_t rows, float* y, int64_t threads) {
    Linear w = {m, x, y, rows};
    pool().run(linear_team, &w, m->inputs * m->outputs * rows < 65536 ? 1 : (int)threads);
}

// A block of drafting heads: y [rows][outputs in sixteens] is x's first numbers + skip(x), where there is one, + SiLU(first(x)).
struct Residual { const Matrix *first, *skip; const float* x; float* y; int64_t rows; };

static void residual_team(void* given, Team team) {
    const Residual& w = *(const Residual*)given;
    const int64_t inputs = w.first->inputs, outputs = w.first->outputs, ld = up(outputs, LANES);
    auto add = [&](int64_t row, int64_t at, const float* above, const float* sums) {  // a unit of each matrix is one thread's
        const int64_t count = outputs - at < UNIT ? outputs - at : UNIT;
        for (int64_t i = 0; i < count; i++) w.y[row * ld + at + i] = above[i] + sums[i];
    };
    if (w.skip) multiply(team, *w.skip, w.x, inputs, w.rows, [&](int64_t row, int64_t at, int, const float* sums) {
        add(row, at, w.x + row * inputs + at, sums);
    });
    multiply(team, *w.first, w.x, inputs, w.rows, [&](int64_t row, int64_t at, int sixteens, const float* sums) {
        alignas(64) float turned[UNIT];
        for (int p = 0; p < sixteens; p++) {
            const Vec v = load(sums + p * LANES);
            store(turned + p * LANES, v / (1.0f + exponential(-v)));
        }
        add(row, at, w.skip ? w.y + row * ld + at : w.x + row * inputs + at, turned);
    });
}

// x: `width` numbers of each row, `ldx` from row to row (0: the same for all), and where that is not all of a row's inputs
// `scale` times the others, which lie in `beside` without a gap.
extern "C" void sb_residual(const Matrix* first, const Matrix* skip, const float* x, int64_t width, int64_t ldx, const float* beside,
                            float scale, int64_t rows, float* y, int64_t threads) {
    static thread_local std::vector<float> joined;
    const int64_t inputs = first->inputs, others = inputs - width;
    if (others || ldx != inputs) {
        if ((int64_t)joined.size() < rows * inputs) joined.resize(rows * inputs);
        for (int64_t r = 0; r < rows; r++) {
            memcpy(joined.data() + r * inputs, x + r * ldx, width * sizeof(float));
            for (int64_t i = 0; i < others; i++) joined[r * inputs + width + i] = scale * beside[r * others + i];
        }
        x = joined.data();
    }
    Residual w = {first, skip, x, y, rows};
    pool().run(residual_team, &w, inputs * first->outputs * rows < 65536 ? 1 : (int)threads);
}

extern "C" void sb_add(float* y, const float* x, int64_t rows, int64_t n) {  // x to each row of y
    for (int64_t r = 0; r < rows; r++) for (int64_t i = 0; i < n; i++) y[r * n + i] += x[i];
}

extern "C" void sb_norm(const float* x, const float* w, int64_t rows, int64_t n, float eps, float* y) {
    for (int64_t r = 0; r < rows; r++) rms_norm(x + r * n, w, n, eps, y + r * n);
}

// `keep` in each layer.
extern "C" void sb_keep(const Model* m, float* const* keys, float* const* values, int64_t capacity, int64_t start,
                        const int64_t* rows, int64_t count) {
    const int64_t dim = m->head_dim, ld = up(dim, LANES), positions = up(capacity, LANES);
    for (int64_t layer = 0; layer < m->layers; layer++) for (int64_t kv = 0; kv < m->kv_heads; kv++) {
        keep(*m, keys[layer] + kv * positions * dim, values[layer] + kv * positions * ld, start, rows, count);
    }
}

extern "C" int64_t sb_sizes(int64_t which) {  // whether both sides mean the same structures
    const int64_t sizes[] = {sizeof(Matrix), sizeof(Layer), sizeof(Model), sizeof(Forward)};
    return sizes[which];
}

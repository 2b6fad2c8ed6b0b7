// One forward of a Llama-shaped decoder over n rows, in float32.
//
// Every sum has one order, whatever the number of rows or threads and wherever a row's ancestors lie in the cache: an output of
// a matrix is one chain of fused multiply-adds over its inputs, a score one pair of chains over the head's width, and a row's
// keys are counted by their place on its own path. So a row's logits are bit for bit those of feeding its path one by one.
//
// Weights lie in units of 64 outputs, [unit][input][64] (the last unit as wide as it needs to be, in sixteens), float32 or
// bfloat16; or in blocks of 32 inputs, [unit][block], a number being d * q + m: of four bits d [64], m [64] and words [4][64] with
// eight inputs' q, the first in the lowest bits; of eight bits d [64] and words [8][64] with four, m being 0. Both give the
// float32 number exactly (packing.py has seen to it), so that all kinds of storage give the same bits. Keys: [kv head][position / 16][head_dim][16]. Values: [kv head][position][head_dim padded to sixteens].

#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>
#ifdef __linux__
#include <pthread.h>
#include <sched.h>
#endif

typedef float Vec __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t Words __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t Halves __attribute__((vector_size(32), aligned(2), may_alias));
static const int64_t LANES = 16, UNIT = 64, BLOCK = 32, CHUNK = 64, QUERIES = 4;
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

// ------------------------------------------------------------------------------------------------------------------- threads
static inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

struct Team {
    int size, rank;
    std::atomic<int64_t>* arrived;
    int64_t met = 0;
    void meet() {  // nobody goes on before all are here
        if (size == 1) return;
        met += size;
        arrived->fetch_add(1, std::memory_order_acq_rel);
        for (int spins = 0; arrived->load(std::memory_order_acquire) < met; spins++)
            if (spins < 4000) relax(); else std::this_thread::yield();
    }
    void share(int64_t count, int64_t* first, int64_t* last) const {
        *first = count * rank / size;
        *last = count * (rank + 1) / size;
    }
};

struct Pool {  // threads that wait for the next forward: spinning for a little, then asleep
    std::mutex busy, door;
    std::condition_variable bell;
    std::vector<std::thread> threads;
    std::atomic<int64_t> turn{0}, done{0}, arrived{0};
    std::atomic<bool> closing{false};
    void (*work)(void*, Team) = nullptr;
    void* given = nullptr;
    int size = 1;
#ifdef __linux__
    cpu_set_t cores;
#endif

    void wait(int rank, int64_t seen) {
        for (;;) {
            for (int spins = 0; turn.load(std::memory_order_acquire) == seen && spins < 8000; spins++) relax();
            if (turn.load(std::memory_order_acquire) == seen) {
                std::unique_lock<std::mutex> lock(door);
                bell.wait(lock, [&] { return turn.load(std::memory_order_acquire) != seen; });
            }
            seen = turn.load(std::memory_order_acquire);
            if (closing.load()) return;
            work(given, Team{size, rank, &arrived});
            done.fetch_add(1, std::memory_order_acq_rel);
        }
    }
    void start_turn() {
        std::lock_guard<std::mutex> lock(door);
        turn.fetch_add(1, std::memory_order_acq_rel);
        bell.notify_all();
    }
    void resize(int wanted) {
        if (wanted == size) return;
        close();
        size = wanted;
        int64_t seen = turn.load();
        for (int rank = 1; rank < size; rank++) threads.emplace_back([this, rank, seen] { wait(rank, seen); });
#ifdef __linux__
        CPU_ZERO(&cores);
#endif
    }
    void close() {
        closing = true;
        start_turn();
        for (auto& thread : threads) thread.join();
        threads.clear();
        closing = false;
    }
    void follow() {  // the caller was pinned elsewhere since: its helpers go along
#ifdef __linux__
        cpu_set_t now;
        if (sched_getaffinity(0, sizeof now, &now) == 0 && !CPU_EQUAL(&now, &cores)) {
            for (auto& thread : threads) pthread_setaffinity_np(thread.native_handle(), sizeof now, &now);
            cores = now;
        }
#endif
    }
    void run(void (*what)(void*, Team), void* with, int wanted) {
        std::atomic<int64_t> own{0};
        // Two forwards at once in one process: the second has only its own thread, and the same bits.
        if (wanted <= 1 || !busy.try_lock()) return what(with, Team{1, 0, &own});
        resize(wanted);
        follow();
        work = what;
        given = with;
        arrived = 0;
        done = 0;
        start_turn();
        what(with, Team{size, 0, &arrived});
        for (int spins = 0; done.load(std::memory_order_acquire) < size - 1; spins++)
            if (spins < 4000) relax(); else std::this_thread::yield();
        busy.unlock();
    }
    ~Pool() { if (size > 1) close(); }
};
static Pool& pool() {
    static Pool* made = new Pool;  // never freed: its threads may outlive static destructors
    return *made;
}

// ---------------------------------------------------------------------------------------------------------------- the model
extern "C" {
struct Matrix { const void* data; const float* bias; int64_t inputs, outputs, kind; };  // kind: FLOATS ...
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
};
}

// ---------------------------------------------------------------------------------------------------------------- matrices
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

struct FourBits {
    static const int64_t STEP = 8, BYTES = 24;  // inputs in a word; bytes of a block, for one output
    static inline Vec number(const float* d, int64_t width, Words word, int64_t k) {
        // The upper of two stays where it is and is worth 16 times: one shift for both, and the product with d / 16 is the same.
        const int64_t upper = k % 2;
        const Words q = word >> (4 * (k - upper)) & (15u << 4 * upper);
        return __builtin_convertvector((Ints)q, Vec) * (load(d) * (upper ? 0x1p-4f : 1.0f)) + load(d + width);
    }
};
struct EightBits {
    static const int64_t STEP = 4, BYTES = 36;
    static inline Vec number(const float* d, int64_t, Words word, int64_t k) {
        const Words q = word << (24 - 8 * k) & 0xff000000;  // with its sign, and worth 2^24 times
        return __builtin_convertvector((Ints)q, Vec) * (load(d) * 0x1p-24f);
    }
};

// The same for weights in blocks of 32 inputs; `w`: the unit's, `at`: where its sixteens begin.
template <int P, int R, class W>
static inline void block(const W* w, int64_t width, int64_t at, const float* x, int64_t ldx, int64_t from, int64_t to, float* acc) {
    Vec sum[R][P];
    for (int r = 0; r < R; r++) for (int p = 0; p < P; p++) sum[r][p] = load(acc + r * UNIT + p * LANES);
    for (int64_t i = from; i < to; i += BLOCK) {
        const float* d = (const float*)((const char*)w + i / BLOCK * W::BYTES * width) + at;
        const uint32_t* q = (const uint32_t*)d + (W::BYTES / 4 - BLOCK / W::STEP) * width;
        for (const float* own = d; own < (const float*)q; own += width)
            for (int p = 0; p < P; p++) __builtin_prefetch((const char*)(own + p * LANES) + 4096, 0, 3);
        for (int64_t k = 0; k < BLOCK; k += W::STEP, q += width) {
            Words word[P];
            for (int p = 0; p < P; p++) {
                word[p] = *(const Words*)(q + p * LANES);
                __builtin_prefetch((const char*)(q + p * LANES) + 4096, 0, 3);
            }
            // Of one or two rows each sixteen reads x by itself, as an operand of its multiply-add: what spreads a number to a
            // register takes one of the ports that multiply. The compiler would read it once for all.
            int64_t at_x[P];
            for (int p = 0; p < P; p++) {
                at_x[p] = i + k;
                if (WIDE && R <= 2) asm volatile("" : "+r"(at_x[p]));
            }
#pragma GCC unroll 8
            for (int64_t n = 0; n < W::STEP; n++) {  // written out, so that every shift's count is a constant
                Vec own[P];
                for (int p = 0; p < P; p++) own[p] = W::number(d + p * LANES, width, word[p], n);
                for (int r = 0; r < R; r++) for (int p = 0; p < P; p++) sum[r][p] += own[p] * spread(x[r * ldx + at_x[p] + n]);
            }
        }
    }
    for (int r = 0; r < R; r++) for (int p = 0; p < P; p++) store(acc + r * UNIT + p * LANES, sum[r][p]);
}

// A unit of blocks as float32, [input][width].
template <class W>
static const float* widened(const W* w, int64_t width, int64_t inputs) {
    static thread_local std::vector<float> room;
    if ((int64_t)room.size() < inputs * UNIT) room.resize(inputs * UNIT);
    float* out = room.data();
    for (int64_t i = 0; i < inputs; i++) for (int64_t at = 0; at < width; at += LANES, out += LANES) {
        const float* d = (const float*)((const char*)w + i / BLOCK * W::BYTES * width) + at;
        const uint32_t* q = (const uint32_t*)d + (W::BYTES / 4 - BLOCK / W::STEP + i % BLOCK / W::STEP) * width;
        store(out, W::number(d, width, *(const Words*)q, i % W::STEP));
    }
    return room.data();
}

template <int P, int R, class W>
static inline void part(const W* w, int64_t width, int64_t at, const float* x, int64_t ldx, int64_t from, int64_t to, float* acc) {
    if constexpr (std::is_arithmetic<W>::value) block<P, R>(w + at, width, x, ldx, from, to, acc + at);
    else block<P, R>(w, width, at, x, ldx, from, to, acc + at);
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
        if (most >= 4) for (; p + 4 <= sixteens; p += 4) part<(WIDE || R == 1) ? 4 : 1, R>(w, width, p * LANES, x, ldx, from, to, acc);
        if (most >= 2) for (; p + 2 <= sixteens; p += 2) {
            part<(WIDE || R <= 3) ? 2 : 1, R>(w, width, p * LANES, x, ldx, from, to, acc);
        }
        for (; p < sixteens; p++) part<1, R>(w, width, p * LANES, x, ldx, from, to, acc);
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

// Six rows at once read the blocks again: from this many on it is cheaper to write the numbers out.
static const int64_t WIDENED_FROM = 12;
static const int64_t BLOCK_BYTES[] = {4 * BLOCK, 2 * BLOCK, FourBits::BYTES, EightBits::BYTES};

// Each unit of 64 outputs for all rows; `then(row, first output, sixteens, sums)` takes them away.
template <class Then>
static void multiply(const Team& team, const Matrix& m, const float* x, int64_t ldx, int64_t rows, Then then) {
    const int64_t sixteens = up(m.outputs, LANES) / LANES, units = (sixteens + 3) / 4;
    int64_t first, last;
    team.share(units, &first, &last);
    for (int64_t u = first; u < last; u++) {
        const int wide = sixteens - 4 * u < 4 ? (int)(sixteens - 4 * u) : 4;
        const char* data = (const char*)m.data + u * UNIT * m.inputs / BLOCK * BLOCK_BYTES[m.kind];
        int64_t kind = m.kind;
        if (kind >= FOUR_BITS && rows > WIDENED_FROM) {  // widened once for all rows
            if (kind == FOUR_BITS) data = (const char*)widened((const FourBits*)data, wide * LANES, m.inputs);
            else data = (const char*)widened((const EightBits*)data, wide * LANES, m.inputs);
            kind = FLOATS;
        }
        for (int64_t r = 0; r < rows; r += 6) {
            const int64_t some = rows - r < 6 ? rows - r : 6;
            alignas(64) float acc[6 * UNIT];
            for (int64_t k = 0; k < some; k++) for (int p = 0; p < wide; p++)
                store(acc + k * UNIT + p * LANES, m.bias ? load(m.bias + u * UNIT + p * LANES) : Vec{});
            const float* own = x + r * ldx;
            switch (kind) {
                case FLOATS: some_rows((const float*)data, wide, own, ldx, some, m.inputs, acc); break;
                case HALVES: some_rows((const uint16_t*)data, wide, own, ldx, some, m.inputs, acc); break;
                case FOUR_BITS: some_rows((const FourBits*)data, wide, own, ldx, some, m.inputs, acc); break;
                default: some_rows((const EightBits*)data, wide, own, ldx, some, m.inputs, acc);
            }
            for (int64_t k = 0; k < some; k++) then(r + k, u * UNIT, wide, acc + k * UNIT);
        }
    }
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

// --------------------------------------------------------------------------------------------------------------- attention
template <int Q, int B>  // Q queries, B blocks of 16 keys at once
static inline void score_blocks(const float* const* q, const float* keys, int64_t dim, float scale, float* const* z, int64_t at) {
    Vec even[Q][B], odd[Q][B];
    for (int a = 0; a < Q; a++) for (int b = 0; b < B; b++) even[a][b] = odd[a][b] = Vec{};
    for (int64_t i = 0; i < dim; i += 2) for (int b = 0; b < B; b++) {
        const float* k = keys + b * dim * LANES + i * LANES;
        Vec first = load(k), second = load(k + LANES);
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

// ----------------------------------------------------------------------------------------------------------------- forward
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
        multiply(team, m.head, w.x + skip * w.ld_width, w.ld_width, rows - skip,
                 [&](int64_t row, int64_t at, int sixteens, const float* sums) {
            float* z = f.logits + (at_row + row) * ld + at;
            if (m.logit_divisor == 1.0f) memcpy(z, sums, sixteens * LANES * sizeof(float));
            else for (int i = 0; i < sixteens * LANES; i++) z[i] = sums[i] / m.logit_divisor;
        });
    }
    team.meet();
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
    float* at = (float*)up((int64_t)kept.data(), 64);
    w.h = at;
    w.x = w.h + rows * w.ld_width;
    w.qkv = w.x + rows * w.ld_width;
    w.mixed = w.qkv + rows * w.ld_qkv;
    w.act = w.mixed + rows * w.ld_mixed;
    w.own = w.act + rows * w.ld_inner;
    pool().run(forward_team, &w, (int)threads);
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

// ------------------------------------------------------------------------------------------------------------------- ranks
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

// Threads of their own, which share a forward.

#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>
#ifdef __linux__
#include <pthread.h>
#include <sched.h>
#endif

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
    static Pool* made = nullptr;  // never freed: its threads may outlive static destructors
    static std::once_flag first;
    std::call_once(first, [] {
        made = new Pool;
#ifdef __linux__
        pthread_atfork(nullptr, nullptr, [] { made = new Pool; });  // a child has none of its parent's threads
#endif
    });
    return *made;
}

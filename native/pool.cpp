#include "pool.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#ifdef __unix__
#include <unistd.h>
#endif

namespace waterfill {
namespace {

constexpr int kSpins = 4000;  // looks for work before a thread goes to sleep: some microseconds

class Pool {
public:
    void run(int helpers, int64_t chunks, const std::function<void(int64_t)>& work) {
        helpers = started(helpers);
        {
            std::lock_guard<std::mutex> held(mutex_);
            work_ = &work;
            chunks_ = chunks;
            next_.store(0, std::memory_order_relaxed);
            wanted_ = helpers;
            busy_.store(helpers, std::memory_order_relaxed);
            round_.fetch_add(1, std::memory_order_release);
        }
        wake_.notify_all();
        take(work, chunks);
        {
            std::lock_guard<std::mutex> held(mutex_);  // who has not begun by now need not begin
            busy_.fetch_sub(wanted_, std::memory_order_relaxed);
            wanted_ = 0;
        }
        while (busy_.load(std::memory_order_acquire) > 0) std::this_thread::yield();
    }

private:
    // So many threads, or as many as the system gives.
    int started(int helpers) {
        try {
            while (static_cast<int>(threads_.size()) < helpers) threads_.emplace_back([this] { wait_for_work(); });
        } catch (const std::system_error&) {
            return static_cast<int>(threads_.size());
        }
        return helpers;
    }

    void take(const std::function<void(int64_t)>& work, int64_t chunks) {
        for (int64_t i = next_.fetch_add(1); i < chunks; i = next_.fetch_add(1)) work(i);
    }

    [[noreturn]] void wait_for_work() {
        uint64_t seen = 0;
        for (;;) {
            for (int spin = 0; spin < kSpins && round_.load(std::memory_order_acquire) == seen; ++spin)
                std::atomic_signal_fence(std::memory_order_seq_cst);
            const std::function<void(int64_t)>* work = nullptr;
            int64_t chunks = 0;
            {
                std::unique_lock<std::mutex> held(mutex_);
                wake_.wait(held, [&] { return round_.load(std::memory_order_relaxed) != seen; });
                seen = round_.load(std::memory_order_relaxed);
                if (wanted_ > 0) {
                    --wanted_;
                    work = work_;
                    chunks = chunks_;
                }
            }
            if (work == nullptr) continue;
            take(*work, chunks);
            busy_.fetch_sub(1, std::memory_order_release);
        }
    }

    std::mutex mutex_;
    std::condition_variable wake_;
    std::vector<std::thread> threads_;
    std::atomic<uint64_t> round_{0};
    std::atomic<int64_t> next_{0};
    std::atomic<int> busy_{0};
    const std::function<void(int64_t)>* work_ = nullptr;
    int64_t chunks_ = 0;
    int wanted_ = 0;
};

std::mutex one_caller;
Pool* pool = nullptr;  // never destroyed: its threads wait until the process ends
#ifdef __unix__
pid_t owner = 0;       // after a fork the threads are gone, and the pool is left behind
#endif

Pool& of_this_process() {
#ifdef __unix__
    if (owner != getpid()) pool = nullptr;
    owner = getpid();
#endif
    if (pool == nullptr) pool = new Pool;
    return *pool;
}

}  // namespace

void in_parallel(int threads, int64_t chunks, const std::function<void(int64_t)>& work) {
    const int helpers = static_cast<int>(chunks < threads ? chunks : threads) - 1;
    std::unique_lock<std::mutex> alone(one_caller, std::try_to_lock);
    if (helpers < 1 || !alone.owns_lock()) {
        for (int64_t i = 0; i < chunks; ++i) work(i);
        return;
    }
    of_this_process().run(helpers, chunks, work);
}

}  // namespace waterfill

// Many tasks of one call on a few threads.
#pragma once

#include <algorithm>
#include <exception>
#include <mutex>
#include <numeric>
#include <vector>

#include "pool.h"

namespace waterfill {

constexpr size_t kWorthAThread = 1 << 16;  // units of work; waking a thread takes as long as a few thousand

// Calls `task(i)` for every task, those of the most work first, on at most so many threads, this one included. Rethrows
// one of the exceptions that leave a task.
template <class Task>
void run_tasks(const std::vector<size_t>& work, int threads, Task&& task) {
    std::vector<size_t> order(work.size());
    std::iota(order.begin(), order.end(), size_t(0));
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return work[a] > work[b]; });
    std::exception_ptr failure;
    std::mutex one_at_a_time;
    const size_t worth = std::accumulate(work.begin(), work.end(), size_t(0)) / kWorthAThread;
    const int most = static_cast<int>(std::min(size_t(std::max(threads, 1)), std::max(worth, size_t(1))));
    in_parallel(most, static_cast<int64_t>(order.size()), [&](int64_t i) {
        try {
            task(order[i]);
        } catch (...) {
            const std::lock_guard<std::mutex> held(one_at_a_time);
            failure = std::current_exception();
        }
    });
    if (failure) std::rethrow_exception(failure);
}

}  // namespace waterfill

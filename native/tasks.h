// Many tasks of one call on a few threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <numeric>
#include <thread>
#include <vector>

namespace waterfill {

constexpr size_t kWorthAThread = 1 << 16;  // units of work; starting a thread takes as long as a few thousand

// Calls `task(i)` for every task, those of the most work first, on at most so many threads, this one included. Rethrows
// one of the exceptions that leave a task.
template <class Task>
void run_tasks(const std::vector<size_t>& work, int threads, Task&& task) {
    std::vector<size_t> order(work.size());
    std::iota(order.begin(), order.end(), size_t(0));
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return work[a] > work[b]; });
    std::atomic<size_t> next{0};
    std::exception_ptr failure;
    std::mutex one_at_a_time;
    const auto take = [&] {
        try {
            for (size_t i = next++; i < order.size(); i = next++) task(order[i]);
        } catch (...) {
            const std::lock_guard<std::mutex> held(one_at_a_time);
            failure = std::current_exception();
        }
    };
    const size_t worth = std::accumulate(work.begin(), work.end(), size_t(0)) / kWorthAThread;
    const size_t most = std::min({size_t(std::max(threads, 1)), worth, work.size()});
    std::vector<std::thread> others;
    try {
        for (size_t i = 1; i < most; ++i) others.emplace_back(take);
    } catch (const std::system_error&) {  // no more threads are to be had: those that run do all
    }
    take();
    for (std::thread& other : others) other.join();
    if (failure) std::rethrow_exception(failure);
}

}  // namespace waterfill

// Threads that wait for work: a product takes less time than a thread takes to start.
#pragma once

#include <cstdint>
#include <functional>

namespace waterfill {

// Calls work(i) for i from 0 to chunks - 1 in up to `threads` threads, the caller among them, and returns when all are
// done. One caller at a time gets the threads; another one meanwhile does its work alone. `work` must not throw.
void in_parallel(int threads, int64_t chunks, const std::function<void(int64_t)>& work);

}  // namespace waterfill

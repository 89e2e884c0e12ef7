// A sum of matrices times one input, in one call. What each matrix gives is what it gives alone.
#include "sum.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <stdexcept>

#include "pool.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace waterfill;

namespace {

constexpr int64_t kAlone = 1 << 20;  // sums of so many entries and fewer are not shared out
constexpr int64_t kRunsOfThread = 4;
constexpr size_t kCodes = 7, kCodeSizes = 6, kEntries = 3;

}  // namespace

void Summand::prepare(const Record& record, const float* x, const std::string& isa) {
    const auto& [arrays, sizes] = record;
    x_ = x;
    sparse_ = arrays.size() == kEntries;
    if (sparse_) {
        entries_ = {at<int64_t>(arrays[0]), at<void>(arrays[1]), at<float>(arrays[2]), sizes.at(0), sizes.at(1),
                    sizes.at(2) != 0};
        return;
    }
    const bool chain = arrays.size() == 2 * kCodes;
    if (sizes.size() != (chain ? 2 : 1) * kCodeSizes || (!chain && arrays.size() != kCodes))
        throw std::invalid_argument("no matrix of a sum");
    if (chain) {
        between_.resize(sizes[kCodeSizes]);
        prepare_codes(right_, record, 1, x, isa);
        right_.rows(0, sizes[kCodeSizes], between_.data());
    }
    prepare_codes(left_, record, 0, chain ? between_.data() : x, isa);
}

void Summand::rows(int64_t begin, int64_t end, float* y) const {
    if (sparse_)
        entries_rows(entries_, begin, end, x_, y);
    else
        left_.rows(begin, end, y);
}

void Summand::prepare_codes(CodesProduct& product, const Record& record, int which, const float* x,
                            const std::string& isa) {
    const uintptr_t* arrays = record.first.data() + which * kCodes;
    const int64_t* sizes = record.second.data() + which * kCodeSizes;
    product.prepare(code_matrix(arrays, sizes, static_cast<int>(sizes[4])), x, at<float>(arrays[3]), 1,
                    static_cast<int>(sizes[5]), isa);
}

void SumProduct::run(const std::vector<Record>& records, const float* x, int threads, float* y,
                     const std::string& isa) {
    const int64_t rows = records.at(0).second.at(0), cols = records[0].second.at(1);
    const size_t count = records.size();
    if (summands_.size() < count) summands_.resize(count);
    more_.resize(count > 1 ? rows : 0);
    for (size_t i = 0; i < count; ++i) summands_[i].prepare(records[i], x, isa);
    if (rows * cols <= kAlone) threads = 1;
    // Few long runs of rows: each matrix is read in one go, which memory is fastest at.
    const int64_t runs = threads == 1 ? 1 : kRunsOfThread * threads;
    const int64_t each = std::max(kRowsAtOnce, (rows / runs + kRowsAtOnce) / kRowsAtOnce * kRowsAtOnce);
    in_parallel(threads, (rows + each - 1) / each, [&](int64_t run) {
        const int64_t begin = run * each, end = std::min(rows, begin + each);
        summands_[0].rows(begin, end, y);
        for (size_t i = 1; i < count; ++i) {
            summands_[i].rows(begin, end, more_.data());
            for (int64_t r = begin; r < end; ++r) y[r] += more_[r];
        }
    });
    if (cols > kKept || rows > kKept) *this = SumProduct();
}

// y [rows] = x [cols] times a sum of matrices, which the caller has checked. places: addresses of x and y.
void sum_product(std::vector<uintptr_t> places, std::vector<Record> records, int threads, const std::string& isa) {
    const float* x = at<float>(places.at(0));
    float* y = const_cast<float*>(at<float>(places.at(1)));
    nb::gil_scoped_release unlocked;
    static thread_local SumProduct sum;
    sum.run(records, x, threads, y, isa);
}

void bind_sum(nb::module_& m) {
    m.def("sum_product", &sum_product, "places"_a, "records"_a, "threads"_a, "isa"_a = "");
}

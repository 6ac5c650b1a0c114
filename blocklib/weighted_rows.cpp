// out[r] = sum over k of coefficients[k] * rows[index[k]][r]: a gather fused with the sum, so that only the picked rows
// are read, each once and in order. Columns are shared out among the threads; sums are kept in float32.

#include <algorithm>
#include <cstdint>
#include <cstring>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

constexpr int64_t kBlock = 2048;  // Columns summed at once: their sums stay in the first-level cache.
constexpr int64_t kFused = 8;     // Rows read together: as many streams, one pass over the sums.

inline float widened(float value) { return value; }

inline float widened(uint16_t bits) {
  uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

template <typename T>
void sum_columns(const T* rows, int64_t width, const int64_t* index, const float* coefficients, int64_t count,
                 float* out, int64_t begin, int64_t end) {
  for (int64_t start = begin; start < end; start += kBlock) {
    const int64_t columns = std::min(kBlock, end - start);
    float sums[kBlock] = {};
    int64_t k = 0;
    for (; k + kFused <= count; k += kFused) {
      const T* row[kFused];
      float by[kFused];
      for (int64_t i = 0; i < kFused; ++i) {
        row[i] = rows + index[k + i] * width + start;
        by[i] = coefficients[k + i];
      }
      for (int64_t r = 0; r < columns; ++r) {
        float sum = sums[r];
        for (int64_t i = 0; i < kFused; ++i) sum += by[i] * widened(row[i][r]);
        sums[r] = sum;
      }
    }
    for (; k < count; ++k) {
      const T* row = rows + index[k] * width + start;
      for (int64_t r = 0; r < columns; ++r) sums[r] += coefficients[k] * widened(row[r]);
    }
    std::copy(sums, sums + columns, out + start);
  }
}

template <typename T>
void weighted_rows(const T* rows, int64_t width, const int64_t* index, const float* coefficients, int64_t count,
                   float* out, int threads) {
#ifdef _OPENMP
  if (threads > 1) {
    // Whole cache lines each.
    const int64_t share = ((width + threads - 1) / threads + 15) / 16 * 16;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int thread = 0; thread < threads; ++thread) {
      const int64_t begin = std::min(width, thread * share), end = std::min(width, begin + share);
      sum_columns(rows, width, index, coefficients, count, out, begin, end);
    }
    return;
  }
#endif
  sum_columns(rows, width, index, coefficients, count, out, 0, width);
}

}  // namespace

extern "C" {

void weighted_rows_float32(const float* rows, int64_t width, const int64_t* index, const float* coefficients,
                           int64_t count, float* out, int threads) {
  weighted_rows(rows, width, index, coefficients, count, out, threads);
}

void weighted_rows_bfloat16(const uint16_t* rows, int64_t width, const int64_t* index, const float* coefficients,
                            int64_t count, float* out, int threads) {
  weighted_rows(rows, width, index, coefficients, count, out, threads);
}
}

// A row-major matrix of float32, bfloat16 or float16 that the kernels read and write in float32 pieces of rows.
#pragma once

#include <algorithm>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "kernels.h"
#include "parallel.h"
#include "slamkern.h"

namespace slamkern {

// The most neurons a kernel call sees. Whole rows are best (at 4096 x 1536 float32, pieces of 1024 took 7.0 ms of one
// thread, whole rows 5.1), but a tile of pieces should stay in cache.
constexpr int64_t TILE_COLUMNS = 2048;

// From this size on a result is bound for memory and not for its reader's cache.
constexpr int64_t LARGE_BYTES = int64_t{8} << 20;

// What up is where the FFN has no gate: multiplying by one is exact.
struct Ones {
  float values[TILE_COLUMNS];
  Ones() { std::fill_n(values, TILE_COLUMNS, 1.0f); }
};
inline const Ones ones;

// float32 scratch for a piece of a row, or for what becomes one.
struct alignas(64) Piece {
  float values[TILE_COLUMNS];
};

inline int size_of(int dtype) { return dtype == SLAMKERN_FLOAT32 ? 4 : 2; }

// Rows are `stride` elements apart; data is NULL for a matrix that there is not.
struct Matrix {
  char* data;
  int64_t stride;
  int dtype;
  bool streamed = false;

  Matrix(const void* pointer, int64_t row_stride, int row_dtype)
      : data(static_cast<char*>(const_cast<void*>(pointer))), stride(row_stride), dtype(row_dtype) {}
  explicit operator bool() const { return data != nullptr; }
  char* at(int64_t row, int64_t column) const { return data + (row * stride + column) * size_of(dtype); }

  // Call once for a freshly allocated result. A large one is written past the caches, and asks for pages of 2 MiB:
  // fresh memory in pages of 4 KiB costs as much as the op itself (180 MB touched first: 45 ms against 17 ms, 2
  // threads; the op on 4096 x 11008 float32, one thread: 121 ms, with both 80 ms).
  //
  // The pages are made here, each by one thread: two that first touch one page of 2 MiB would both clear it.
  void prepare_output(int64_t tokens, int64_t neurons, int threads) {
    const int64_t bytes = tokens * neurons * size_of(dtype);
    if (!data || bytes < LARGE_BYTES) return;
    streamed = reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride * size_of(dtype) % 16 == 0 &&
               neurons * size_of(dtype) % 16 == 0;
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const uintptr_t page = 4096, first = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
    const uintptr_t end = reinterpret_cast<uintptr_t>(data + bytes) / page * page;
    if (stride != neurons) return;
    madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#if defined(MADV_POPULATE_WRITE)
    const uintptr_t part = uintptr_t{8} << 20, whole = (first + part - 1) / part * part;
    parallel(whole < end ? (end - whole) / part : 0, threads, [&](int64_t i) {
      madvise(reinterpret_cast<void*>(whole + i * part), part, MADV_POPULATE_WRITE);  // before Linux 5.14: no effect
    });
#endif
#endif
  }

  // n elements as float32: in place, or converted into scratch.
  const float* read(const Kernels& k, int64_t row, int64_t column, int64_t n, Piece& scratch) const {
    if (!data) return ones.values;
    if (dtype == SLAMKERN_FLOAT32) return reinterpret_cast<const float*>(at(row, column));
    k.load[dtype](at(row, column), scratch.values, n);
    return scratch.values;
  }

  // Where the kernel shall put n elements, and afterwards what brings them from there to their place.
  float* target(int64_t row, int64_t column, Piece& scratch) const {
    const bool direct = data && dtype == SLAMKERN_FLOAT32 && !streamed;
    return direct ? reinterpret_cast<float*>(at(row, column)) : scratch.values;
  }
  void write(const Kernels& k, int64_t row, int64_t column, int64_t n, const float* from) const {
    if (!data || (dtype == SLAMKERN_FLOAT32 && !streamed)) return;
    const void* converted = from;
    alignas(64) uint16_t narrow[TILE_COLUMNS];
    if (dtype != SLAMKERN_FLOAT32) {
      k.store[dtype](from, streamed ? static_cast<void*>(narrow) : at(row, column), n);
      converted = narrow;
    }
    if (streamed) k.stream(converted, at(row, column), n * size_of(dtype));
  }
};

inline Ahead ahead_of(const Matrix& first, const Matrix& second, int64_t row, int64_t column) {
  return {first.at(row, column), second ? second.at(row, column) : first.at(row, column), size_of(first.dtype)};
}

}  // namespace slamkern

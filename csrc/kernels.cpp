// Compiled once per instruction set: SLAMKERN_ISA names the namespace and the table of this translation unit
// (setup.py).
#include "kernels.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include <cstring>
#include <type_traits>

#include "convert.h"
#include "math.h"

namespace slamkern::SLAMKERN_ISA {
namespace {

template <class T>
void load(const void* row, float* __restrict out, int64_t n) {
  const auto* x = static_cast<const uint16_t*>(row);
  int64_t i = 0;
#if defined(__F16C__)
  if constexpr (std::is_same_v<T, Float16>)  // the one conversion that has an instruction of its own
    for (; i + 8 <= n; i += 8)
      _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i))));
#endif
  for (; i < n; ++i) out[i] = T::load(x[i]);
}

template <class T>
void store(const float* __restrict x, void* row, int64_t n) {
  auto* __restrict out = static_cast<uint16_t*>(row);
  int64_t i = 0;
#if defined(__F16C__)
  if constexpr (std::is_same_v<T, Float16>)
    for (; i + 8 <= n; i += 8)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i),
                       _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT));
#endif
  for (; i < n; ++i) out[i] = T::store(x[i]);
}

// A loop over n in blocks of 64 elements, each begun by asking memory for the same block of what comes next. Hardware
// prefetchers see rows of a few KiB, and start anew at each: at 4096 x 11008 float32 on one thread, 60 ms against 44
// ms. body(i) touches elements i of arrays that do not overlap, which ivdep says.
template <class Body>
inline void blocks(int64_t n, Ahead ahead, const Body& body) {
  constexpr int64_t BLOCK = 64;
  int64_t i = 0;
  for (; i + BLOCK <= n; i += BLOCK) {
    for (int64_t line = 0; line < ahead.element_size; ++line) {
      __builtin_prefetch(ahead.first + i * ahead.element_size + line * 64, 0, 2);
      __builtin_prefetch(ahead.second + i * ahead.element_size + line * 64, 0, 2);
    }
#pragma GCC ivdep
    for (int64_t j = i; j < i + BLOCK; ++j) body(j);
  }
#pragma GCC ivdep
  for (; i < n; ++i) body(i);
}

template <class A, bool OBSERVE_HIDDEN>
void forward(const float* gate, const float* up, float* hidden, float* observed, int64_t n, Ahead ahead) {
  blocks(n, ahead, [=](int64_t i) __attribute__((always_inline)) {
    const float value = A::value(gate[i]), product = value * up[i];
    observed[i] = OBSERVE_HIDDEN ? product : value;
    hidden[i] = product;
  });
}

template <class A>
void backward(const float* grad, const float* gate, const float* up, float* grad_gate, float* grad_up, float* hidden,
              int64_t n, Ahead ahead) {
  blocks(n, ahead, [=](int64_t i) __attribute__((always_inline)) {
    const float value = A::value(gate[i]);
    grad_gate[i] = grad[i] * up[i] * A::slope(gate[i]);
    grad_up[i] = grad[i] * value;
    hidden[i] = value * up[i];
  });
}

void stream(const void* from, void* to, int64_t bytes) {
#if defined(__SSE2__)
  const auto* x = static_cast<const __m128i*>(from);
  auto* out = static_cast<__m128i*>(to);
  for (int64_t i = 0; i < bytes / 16; ++i) _mm_stream_si128(out + i, _mm_loadu_si128(x + i));
  _mm_sfence();  // these stores are not ordered with those that announce the result
#else
  std::memcpy(to, from, static_cast<size_t>(bytes));
#endif
}

// Two passes over a tile in cache (Welford's update inside forward is no faster and rounds ten times more). The second
// takes out what rounding put into the mean: m2 = sum (x - m)^2 - (sum (x - m))^2 / n. COLUMNS at a time, so that their
// sums stay in registers.
template <int COLUMNS>
void column_moments(const float* __restrict tile, int64_t rows, int64_t stride, float* __restrict mean,
                    float* __restrict m2, int32_t* __restrict active) {
  float sum[COLUMNS] = {}, rest[COLUMNS] = {}, squares[COLUMNS] = {};
  int32_t positive[COLUMNS] = {};
  for (int64_t r = 0; r < rows; ++r)
    for (int c = 0; c < COLUMNS; ++c) {
      sum[c] += tile[r * stride + c];
      positive[c] += tile[r * stride + c] > 0.0f;
    }
  const float share = 1.0f / static_cast<float>(rows);
  for (int c = 0; c < COLUMNS; ++c) sum[c] *= share;
  for (int64_t r = 0; r < rows; ++r)
    for (int c = 0; c < COLUMNS; ++c) {
      const float deviation = tile[r * stride + c] - sum[c];
      rest[c] += deviation;
      squares[c] += deviation * deviation;
    }
  for (int c = 0; c < COLUMNS; ++c) {
    const float corrected = squares[c] - rest[c] * rest[c] * share;
    mean[c] = sum[c] + rest[c] * share;
    m2[c] = corrected < 0.0f ? 0.0f : corrected;
    active[c] = positive[c];
  }
}

void tile_moments(const float* tile, int64_t rows, int64_t columns, int64_t stride, float* mean, float* m2,
                  int32_t* active) {
  constexpr int WIDE = 64;
  int64_t c = 0;
  for (; c + WIDE <= columns; c += WIDE) column_moments<WIDE>(tile + c, rows, stride, mean + c, m2 + c, active + c);
  for (; c < columns; ++c) column_moments<1>(tile + c, rows, stride, mean + c, m2 + c, active + c);
}

void merge(int64_t n, double* __restrict mean, double* __restrict m2, int64_t* __restrict active, int64_t tile_n,
           const float* __restrict tile_mean, const float* __restrict tile_m2, const int32_t* __restrict tile_active,
           int64_t columns) {
  const double share = static_cast<double>(tile_n) / static_cast<double>(n + tile_n);
  const double weight = share * static_cast<double>(n);
  for (int64_t c = 0; c < columns; ++c) {
    const double delta = tile_mean[c] - mean[c];
    mean[c] += delta * share;
    m2[c] += tile_m2[c] + delta * delta * weight;
    active[c] += tile_active[c];
  }
}

void exponential_row(const float* __restrict x, float* __restrict out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = exponential(x[i]);
}

}  // namespace

#define SLAMKERN_QUOTE(isa) #isa
#define SLAMKERN_STRING(isa) SLAMKERN_QUOTE(isa)

extern const Kernels table;
const Kernels table = {
    SLAMKERN_STRING(SLAMKERN_ISA),
    {nullptr, load<BFloat16>, load<Float16>},
    {nullptr, store<BFloat16>, store<Float16>},
    {{forward<Silu, false>, forward<Gelu, false>, forward<GeluTanh, false>, forward<Relu, false>},
     {forward<Silu, true>, forward<Gelu, true>, forward<GeluTanh, true>, forward<Relu, true>}},
    {backward<Silu>, backward<Gelu>, backward<GeluTanh>, backward<Relu>},
    stream,
    tile_moments,
    merge,
    exponential_row,
};

}  // namespace slamkern::SLAMKERN_ISA

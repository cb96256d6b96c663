// The inner loops, compiled once per instruction set (kernels.cpp); cpu.cpp picks the table that the processor can run.
//
// Each runs over one contiguous piece of a row, or over a tile, that fits the first or second cache level. All compute
// in float32: other dtypes are converted at the edges, so there are a dozen loops and not one for each combination.
#pragma once

#include <cstdint>

namespace slamkern {

// The pieces that the next call will read: fetched from memory while this one computes.
struct Ahead {
  const char *first, *second;
  int element_size;
};

struct Kernels {
  const char* isa;
  // Indexed by slamkern_dtype, NULL for float32.
  void (*load[3])(const void* row, float* out, int64_t n);
  void (*store[3])(const float* x, void* row, int64_t n);
  // Indexed by slamkern_activation. hidden = act(gate) * up; observed, per slamkern_observe, is act(gate) or hidden.
  void (*forward[2][4])(const float* gate, const float* up, float* hidden, float* observed, int64_t n, Ahead ahead);
  // grad_gate = grad * up * act'(gate), grad_up = grad * act(gate), hidden = act(gate) * up
  void (*backward[4])(const float* grad, const float* gate, const float* up, float* grad_gate, float* grad_up,
                      float* hidden, int64_t n, Ahead ahead);
  // A copy past the caches; `to` and bytes are multiples of 16.
  void (*stream)(const void* from, void* to, int64_t bytes);
  // The moments of each column of tile (rows, columns): mean, sum of squared deviations, positives.
  void (*tile_moments)(const float* tile, int64_t rows, int64_t columns, int64_t stride, float* mean, float* m2,
                       int32_t* active);
  // Chan's merge of a tile's moments into those of the n tokens before it.
  void (*merge)(int64_t n, double* mean, double* m2, int64_t* active, int64_t tile_n, const float* tile_mean,
                const float* tile_m2, const int32_t* tile_active, int64_t columns);
  void (*exponential)(const float* x, float* out, int64_t n);
};

}  // namespace slamkern

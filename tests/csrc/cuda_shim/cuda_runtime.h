// As much of CUDA as csrc uses, on a CPU: every thread of a block is a fiber, blocks run one after another.
//
// Sanitizers see what a GPU would do: ThreadSanitizer takes each thread of each block for a thread of its own, ordered
// by nothing but __syncthreads, __syncwarp and the end of a kernel, so that it finds races whatever the schedule;
// AddressSanitizer watches shared memory and every buffer that its caller allocates. What starts undefined on a GPU is
// NaN or -1 here.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <tuple>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)

using std::min;

using cudaStream_t = void*;
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace shim {

dim3 thread_index();
dim3 block_index();
dim3 block_size();
dim3 grid_size();
void* dynamic_shared();
int last_error();

// Waits for all threads of the block that have not ended; one at another line of the kernel is an error.
void barrier(int line);
// Waits for all lanes of the warp and gives the value of each; orders memory between them if `ordered`.
const uint64_t* exchange(unsigned mask, uint64_t value, bool ordered, int line);

// Blocks and threads take turns in an order that follows from the seed.
void set_order(unsigned seed);
void run(dim3 grid, dim3 block, size_t shared_bytes, void (*thread)(void*), void* kernel);

template <class... Parameters>
struct Launch {
  void (*kernel)(Parameters...);
  dim3 grid, block;
  size_t shared_bytes;

  template <class... Arguments>
  void operator()(Arguments... arguments) const {
    auto call = std::make_pair(kernel, std::tuple<Parameters...>(arguments...));
    const auto thread = [](void* pointer) {
      const auto& [function, parameters] = *static_cast<decltype(call)*>(pointer);
      std::apply(function, parameters);
    };
    run(grid, block, shared_bytes, thread, &call);
  }
};

// kernel<<<grid, block, shared_bytes, stream>>>
template <class... Parameters>
Launch<Parameters...> launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t) {
  return {kernel, grid, block, shared_bytes};
}

inline int lane() { return static_cast<int>(thread_index().x % 32); }

}  // namespace shim

#define threadIdx shim::thread_index()
#define blockIdx shim::block_index()
#define blockDim shim::block_size()
#define gridDim shim::grid_size()

#define __syncthreads() shim::barrier(__LINE__)
#define __syncwarp() static_cast<void>(shim::exchange(0xffffffffu, 0, true, __LINE__))
#define __match_any_sync(mask, value) shim::match_any(mask, value, __LINE__)
#define __shfl_sync(mask, value, source) shim::shuffle(mask, value, source, __LINE__)
#define __shfl_up_sync(mask, value, distance) shim::shuffle(mask, value, shim::lane() - (distance), __LINE__)

namespace shim {

inline unsigned match_any(unsigned mask, int value, int line) {
  const uint64_t* values = exchange(mask, static_cast<unsigned>(value), false, line);
  unsigned same = 0;
  for (int lane = 0; lane < 32; ++lane)
    if (static_cast<int>(values[lane]) == value) same |= 1u << lane;
  return same;
}

inline int shuffle(unsigned mask, int value, int source, int line) {
  const uint64_t* values = exchange(mask, static_cast<unsigned>(value), false, line);
  return source < 0 ? value : static_cast<int>(values[source]);
}

}  // namespace shim

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(unsigned x) { return __builtin_ffs(static_cast<int>(x)); }
inline float normcdff(float x) { return 0.5f * std::erfc(-0.70710678f * x); }
inline int cudaGetLastError() { return shim::last_error(); }

// The C ABI on an NVIDIA GPU. Every function launches on the given stream and returns: no synchronization, no
// allocation, nothing read back, so it can be captured into a CUDA graph.
#include <algorithm>
#include <initializer_list>
#include <type_traits>

#include "cuda_kernels.cuh"

using namespace slamkern;

namespace {

constexpr int64_t SHARED_BYTES = 48 * 1024;  // of a block, without asking for more

template <int VALUE>
using Constant = std::integral_constant<int, VALUE>;

// Calls launch(T*, Constant<VEC>, Constant<ACTIVATION>): the element type, and the widest vector that every row allows.
template <class Launch>
int dispatch(int dtype, int activation, int64_t neurons, std::initializer_list<const void*> pointers,
             std::initializer_list<int64_t> strides, const Launch& launch) {
  const int64_t size = dtype == SLAMKERN_FLOAT32 ? 4 : 2;
  bool wide = neurons * size % 16 == 0;
  for (const void* pointer : pointers) wide = wide && reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
  for (int64_t stride : strides) wide = wide && stride * size % 16 == 0;
  const auto with_vector = [&](auto* type, auto vector) {
    if (activation == SLAMKERN_SILU) launch(type, vector, Constant<SLAMKERN_SILU>());
    if (activation == SLAMKERN_GELU) launch(type, vector, Constant<SLAMKERN_GELU>());
    if (activation == SLAMKERN_GELU_TANH) launch(type, vector, Constant<SLAMKERN_GELU_TANH>());
    if (activation == SLAMKERN_RELU) launch(type, vector, Constant<SLAMKERN_RELU>());
  };
  const auto with = [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if (wide) with_vector(type, Constant<WIDE<T>>());
    else with_vector(type, Constant<1>());
  };
  if (dtype == SLAMKERN_FLOAT32) with(static_cast<float*>(nullptr));
  if (dtype == SLAMKERN_BFLOAT16) with(static_cast<__nv_bfloat16*>(nullptr));
  if (dtype == SLAMKERN_FLOAT16) with(static_cast<__half*>(nullptr));
  return static_cast<int>(cudaGetLastError());
}

dim3 grid(int64_t neurons, int vector, int64_t rows) {
  const int64_t most = 65535;  // of gridDim.y; kernels stride over the rest
  return dim3(static_cast<unsigned>(divide_up(neurons, int64_t{THREADS} * vector)),
              static_cast<unsigned>(std::clamp<int64_t>(rows, 1, most)));
}

template <bool STATS>
int launch_forward(const void* gate, int64_t gate_stride, const void* up, int64_t up_stride, void* hidden,
                   int64_t hidden_stride, int64_t tokens, int64_t neurons, int64_t languages, int dtype, int activation,
                   int observe, const Workspace& work, cudaStream_t stream) {
  const int64_t tiles = STATS ? Workspace::max_tiles(tokens, languages) : divide_up(tokens, TILE_ROWS);
  const auto launch = [&](auto* type, auto vector, auto act) {
    using T = std::remove_pointer_t<decltype(type)>;
    forward<T, vector.value, act.value, STATS><<<grid(neurons, vector.value, tiles), THREADS, 0, stream>>>(
        static_cast<const T*>(gate), gate_stride, static_cast<const T*>(up), up_stride, static_cast<T*>(hidden),
        hidden_stride, tokens, neurons, static_cast<int>(languages), observe, work);
  };
  return dispatch(dtype, activation, neurons, {gate, up, hidden}, {gate_stride, up_stride, hidden_stride}, launch);
}

}  // namespace

int slamkern_abi(void) { return SLAMKERN_ABI; }
const char* slamkern_isa(void) { return "cuda"; }

int slamkern_swiglu(const void* gate, int64_t gate_stride, const void* up, int64_t up_stride, void* hidden,
                    int64_t hidden_stride, int64_t tokens, int64_t neurons, int dtype, int activation, int,
                    void* stream) {
  if (tokens == 0 || neurons == 0) return 0;
  return launch_forward<false>(gate, gate_stride, up, up_stride, hidden, hidden_stride, tokens, neurons, 0, dtype,
                               activation, SLAMKERN_GATE, Workspace(nullptr, 0, 0, 0),
                               static_cast<cudaStream_t>(stream));
}

int64_t slamkern_stats_workspace(int64_t tokens, int64_t neurons, int64_t languages) {
  return Workspace(nullptr, tokens, neurons, languages).bytes;
}

int slamkern_stats_plan(const int32_t* language_ids, int64_t tokens, int64_t languages, int64_t* count, void* workspace,
                        void* stream) {
  const int64_t counters = (languages + 1) * static_cast<int64_t>(sizeof(int));  // of a warp
  const auto warps = static_cast<unsigned>(std::clamp<int64_t>(SHARED_BYTES / counters, 1, MAP_WARPS));
  // What it writes lies at the same place whatever the neurons.
  row_map<<<1, 32 * warps, warps * counters, static_cast<cudaStream_t>(stream)>>>(
      language_ids, static_cast<int>(tokens), static_cast<int>(languages), Workspace(workspace, tokens, 0, languages),
      count);
  return static_cast<int>(cudaGetLastError());
}

int slamkern_swiglu_stats(const void* gate, int64_t gate_stride, const void* up, int64_t up_stride, void* hidden,
                          int64_t hidden_stride, const int32_t* language_ids, int64_t tokens, int64_t neurons,
                          int64_t languages, int dtype, int activation, int observe, int64_t* count, double* mean,
                          double* m2, int64_t* active, void* workspace, int, void* stream_pointer) {
  const auto stream = static_cast<cudaStream_t>(stream_pointer);
  const Workspace work(workspace, tokens, neurons, languages);
  const int planned = language_ids ? slamkern_stats_plan(language_ids, tokens, languages, count, workspace, stream) : 0;
  if (planned) return planned;
  if (neurons == 0) return static_cast<int>(cudaGetLastError());
  if (tokens > 0) {
    const int error = launch_forward<true>(gate, gate_stride, up, up_stride, hidden, hidden_stride, tokens, neurons,
                                           languages, dtype, activation, observe, work, stream);
    if (error) return error;
  }
  const dim3 blocks(static_cast<unsigned>(divide_up(neurons, THREADS)), static_cast<unsigned>(languages));
  merge<<<blocks, THREADS, 0, stream>>>(neurons, work, mean, m2, active);
  return static_cast<int>(cudaGetLastError());
}

int slamkern_swiglu_backward(const void* grad, int64_t grad_stride, const void* gate, int64_t gate_stride,
                             const void* up, int64_t up_stride, void* grad_gate, void* grad_up, void* hidden,
                             int64_t tokens, int64_t neurons, int dtype, int activation, int, void* stream) {
  if (tokens == 0 || neurons == 0) return 0;
  const auto launch = [&](auto* type, auto vector, auto act) {
    using T = std::remove_pointer_t<decltype(type)>;
    backward<T, vector.value, act.value>
        <<<grid(neurons, vector.value, tokens), THREADS, 0, static_cast<cudaStream_t>(stream)>>>(
            static_cast<const T*>(grad), grad_stride, static_cast<const T*>(gate), gate_stride,
            static_cast<const T*>(up), up_stride, static_cast<T*>(grad_gate), static_cast<T*>(grad_up),
            static_cast<T*>(hidden), tokens, neurons);
  };
  return dispatch(dtype, activation, neurons, {grad, gate, up, grad_gate, grad_up, hidden},
                  {grad_stride, gate_stride, up_stride}, launch);
}

// The C ABI of the compiled ops: plain pointers, sizes, strides in elements. Implemented twice with the same names,
// by cpu.cpp (library slamkern/_native.so) and by cuda.cu (library slamkern/_native_cuda.so). The
// CUDA library is for where Triton is not (Windows), or where nothing may be compiled at run time.
//
// gate, up, hidden and gradients are (tokens, neurons) with contiguous neurons; a stride is the distance between rows.
// up == NULL means an FFN without a gate: hidden = act(gate). An output pointer that is NULL is not computed.
// Arithmetic is float32, a result is rounded once to dtype. threads is used by the CPU library alone, stream (a
// cudaStream_t) by the CUDA library alone, which launches and returns without synchronizing.
// Every function returns 0, or a nonzero code where the CUDA runtime refused a launch (a cudaError_t).
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SLAMKERN_ABI 1

enum slamkern_dtype { SLAMKERN_FLOAT32 = 0, SLAMKERN_BFLOAT16 = 1, SLAMKERN_FLOAT16 = 2 };
enum slamkern_activation { SLAMKERN_SILU = 0, SLAMKERN_GELU = 1, SLAMKERN_GELU_TANH = 2, SLAMKERN_RELU = 3 };
enum slamkern_observe { SLAMKERN_GATE = 0, SLAMKERN_HIDDEN = 1 };  // act(gate), or act(gate) * up

#if defined(__GNUC__)
#define SLAMKERN_API __attribute__((visibility("default")))
#else
#define SLAMKERN_API
#endif

// SLAMKERN_ABI of the library, so that a stale one is refused instead of called.
SLAMKERN_API int slamkern_abi(void);

// What the library was built for and uses here: "avx512", "avx2", "baseline" or "cuda".
SLAMKERN_API const char* slamkern_isa(void);

// hidden = act(gate) * up
SLAMKERN_API int slamkern_swiglu(const void* gate, int64_t gate_stride, const void* up, int64_t up_stride, void* hidden,
                                 int64_t hidden_stride, int64_t tokens, int64_t neurons, int dtype, int activation,
                                 int threads, void* stream);

// Bytes that slamkern_swiglu_stats needs at workspace, aligned to 8 bytes.
SLAMKERN_API int64_t slamkern_stats_workspace(int64_t tokens, int64_t neurons, int64_t languages);

// The same, and per language and neuron the moments of what is observed. language_ids: (tokens,); ids outside
// 0..languages-1 are left out of the moments. count: (languages,); mean, m2 (sum of squared deviations), active (how
// often > 0): (languages, neurons). Bitwise the same from run to run and for every number of threads.
SLAMKERN_API int slamkern_swiglu_stats(const void* gate, int64_t gate_stride, const void* up, int64_t up_stride,
                                       void* hidden, int64_t hidden_stride, const int32_t* language_ids, int64_t tokens,
                                       int64_t neurons, int64_t languages, int dtype, int activation, int observe,
                                       int64_t* count, double* mean, double* m2, int64_t* active, void* workspace,
                                       int threads, void* stream);

// Puts the tokens of a batch in the order of their language, once for all of its layers: slamkern_swiglu_stats with
// language_ids == NULL then reads that from workspace, which is large enough for its neurons and in use by one call at a
// time, and leaves count as it is written here. In the CUDA library alone.
SLAMKERN_API int slamkern_stats_plan(const int32_t* language_ids, int64_t tokens, int64_t languages, int64_t* count,
                                     void* workspace, void* stream);

// grad_gate = grad * up * act'(gate), grad_up = grad * act(gate), hidden = act(gate) * up; outputs have stride neurons,
// and those that are NULL are left out.
SLAMKERN_API int slamkern_swiglu_backward(const void* grad, int64_t grad_stride, const void* gate, int64_t gate_stride,
                                          const void* up, int64_t up_stride, void* grad_gate, void* grad_up,
                                          void* hidden, int64_t tokens, int64_t neurons, int dtype, int activation,
                                          int threads, void* stream);

// expf as the CPU kernels compute it, for the accuracy test. Absent from the CUDA library.
SLAMKERN_API void slamkern_exp(const float* x, float* out, int64_t n);

#ifdef __cplusplus
}
#endif

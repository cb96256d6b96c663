// Device code of one element and of one 16-byte vector: conversions, activations and their derivatives, in float32.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "slamkern.h"

namespace slamkern {

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(__half x) { return __half2float(x); }
template <class T>
__device__ T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
  return x;
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ inline __half from_float<__half>(float x) {
  return __float2half_rn(x);
}

// VEC neighboring elements, loaded and stored as one access of up to 16 bytes.
template <class T, int VEC>
struct alignas(sizeof(T) * VEC) Vector {
  T values[VEC];
};
template <class T>
constexpr int WIDE = 16 / sizeof(T);

__device__ inline float logistic(float x) { return 1.0f / (1.0f + expf(-x)); }

// 2 z of GELU's tanh form, 0.5 x (1 + tanh(z)) = x logistic(2 z); bounded where that is 0 or 1 in float32.
__device__ inline float bounded_10(float x) { return x > 10.0f ? 10.0f : x < -10.0f ? -10.0f : x; }
__device__ inline float double_z(float x) { return x * (1.59576912f + 0.0713548163f * (x * x)); }

// ACTIVATION is a slamkern_activation.
template <int ACTIVATION>
__device__ inline float activate(float x) {
  if (ACTIVATION == SLAMKERN_SILU) return x / (1.0f + expf(-x));
  if (ACTIVATION == SLAMKERN_GELU) return x * normcdff(x);
  if (ACTIVATION == SLAMKERN_GELU_TANH) return x * logistic(double_z(bounded_10(x)));
  return x < 0.0f ? 0.0f : x;
}

template <int ACTIVATION>
__device__ inline float slope(float x) {
  if (ACTIVATION == SLAMKERN_SILU) {
    const float s = logistic(x);
    return s * (1.0f + x * (1.0f - s));
  }
  if (ACTIVATION == SLAMKERN_GELU) return normcdff(x) + x * (0.398942280f * expf(-0.5f * x * x));
  if (ACTIVATION == SLAMKERN_GELU_TANH) {
    const float y = bounded_10(x), s = logistic(double_z(y));
    return s + y * s * (1.0f - s) * (1.59576912f + 0.214064449f * (y * y));
  }
  return x <= 0.0f ? 0.0f : 1.0f;
}

}  // namespace slamkern

// float32 exp, the normal distribution and the activations, as straight-line code that the compiler turns into vectors.
//
// No branches, tables or library calls. Polynomials are our own minimax fits (least squares reweighted to equal ripple,
// in float64); the error beside each is that of the polynomial alone. Each activation bounds its argument where the
// result has long been exact or below 1.1e-36, so that exp needs no care for overflow; NaN comes through all the same.
#pragma once

#include <cstdint>

// Translation units for different instruction sets must not share these functions, or the linker could keep the
// AVX-512 copy for all of them.
namespace slamkern::SLAMKERN_ISA {

template <class To, class From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

// x with its magnitude cut to limit; NaN becomes limit. In integers, for which vectors have min and floats with NaN
// don't.
inline float bounded(float x, float limit) {
  const uint32_t bits = bits_as<uint32_t>(x), magnitude = bits & 0x7fffffffu, most = bits_as<uint32_t>(limit);
  return bits_as<float>((magnitude < most ? magnitude : most) | (bits & 0x80000000u));
}

// x, or a zero of its sign below -limit (NaN there for -inf, as in 0 * inf: what torch gives).
inline float cut_below(float x, float limit) { return x < -limit ? x * 0.0f : x; }

// Adds nothing to a number and NaN to NaN or infinity, for results of bounded() arguments.
inline float nan_of(float x) { return x - x; }

constexpr float EXP_LIMIT = 87.3f;  // 126 ln 2: up to here 2^n is a normal float32

// exp(x + tail), |x| <= EXP_LIMIT, |tail| << 1: a correction below the last bit of x where x is itself a rounded
// product.
template <class... Tail>
inline float exponential(float x, Tail... tail) {
  const float round = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, left in the low bits
  const float shifted = x * 1.44269504f + round;
  const float n = shifted - round;
  // ln 2 in two parts, of which the first has 9 bits: n times it is exact.
  float r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  r = (r + ... + tail);
  // (exp(r) - 1 - r) / r^2 on |r| <= ln(2) / 2, error 3.2e-9 of exp(r)
  float p = 1.395063079e-03f;
  p = p * r + 8.368969938e-03f;
  p = p * r + 4.166620371e-02f;
  p = p * r + 1.666651817e-01f;
  p = p * r + 5.000000096e-01f;
  p = p * (r * r) + r;
  p = p + 1.0f;
  return bits_as<float>(bits_as<uint32_t>(p) + (bits_as<uint32_t>(shifted) << 23));  // p * 2^n
}

// The logistic function s(x) = 1 / (1 + exp(-x)) and its derivative s (1 - s), accurate where either is tiny.
struct Logistic {
  float value, slope;
};
inline Logistic logistic(float x) {
  const float e = exponential(-bounded(x < 0.0f ? -x : x, EXP_LIMIT));
  const float r = 1.0f / (1.0f + e);
  return {x < 0.0f ? e * r : r, e * r * r};
}

// The standard normal distribution: cdf = P(X <= x), bell = exp(-x^2 / 2).
struct Normal {
  float cdf, bell;
};
constexpr float NORMAL_LIMIT = 13.2f;  // 13.2^2 / 2 < EXP_LIMIT

// With t = |x| and s = 1 / (1 + 0.3 t): P(X <= -t) = exp(-t^2 / 2) s poly(s), relative error 3.5e-9 of it. So the lower
// tail keeps its relative accuracy, which 1 + erf(x / sqrt 2) loses.
inline Normal normal(float x) {
  const float t = bounded(x < 0.0f ? -x : x, NORMAL_LIMIT);
  // t^2 exactly, as head^2 (12 bits squared fit in 24) and a rest.
  const float head = bits_as<float>(bits_as<uint32_t>(t) & ~0xfffu);
  const float bell = exponential(-0.5f * (head * head), -0.5f * (t - head) * (t + head));
  const float s = 1.0f / (1.0f + 0.3f * t);
  float p = -2.062346303e-02f;
  p = p * s + 1.124355805e-01f;
  p = p * s + -2.282135232e-01f;
  p = p * s + 1.917844330e-01f;
  p = p * s + -7.942340748e-02f;
  p = p * s + 9.615678837e-02f;
  p = p * s + 7.838966447e-02f;
  p = p * s + 1.102354217e-01f;
  p = p * s + 1.195718142e-01f;
  p = p * s + 1.196866898e-01f;
  const float tail = bell * (p * s);
  return {x < 0.0f ? tail : 1.0f - tail, bell};
}

// An activation has value(x) and, for the backward, slope(x) = its derivative.
struct Silu {
  static float value(float x) { return cut_below(x, EXP_LIMIT) / (1.0f + exponential(-bounded(x, EXP_LIMIT))); }
  static float slope(float x) {
    const Logistic s = logistic(x);
    return s.value + bounded(x, EXP_LIMIT) * s.slope + nan_of(x);
  }
};

struct Gelu {
  static float value(float x) { return cut_below(x, NORMAL_LIMIT) * normal(x).cdf; }
  static float slope(float x) {
    const Normal n = normal(x);
    return n.cdf + bounded(x, NORMAL_LIMIT) * (n.bell * 0.398942280f) + nan_of(x);  // 1 / sqrt(2 pi)
  }
};

// 0.5 x (1 + tanh(z)) = x s(2 z), with 2 z = 2 sqrt(2 / pi) (x + 0.044715 x^3)
struct GeluTanh {
  static constexpr float LIMIT = 9.99f;  // there 2 z is 87.1 < EXP_LIMIT
  static float value(float x) { return cut_below(x, LIMIT) / (1.0f + exponential(-double_z(bounded(x, LIMIT)))); }
  static float slope(float x) {
    const float y = bounded(x, LIMIT);
    const Logistic s = logistic(double_z(y));
    return s.value + y * s.slope * (1.59576912f + 0.214064449f * (y * y)) + nan_of(x);
  }

 private:
  static float double_z(float x) { return x * (1.59576912f + 0.0713548163f * (x * x)); }
};

struct Relu {
  static float value(float x) { return x < 0.0f ? 0.0f : x; }
  static float slope(float x) { return x <= 0.0f ? 0.0f : 1.0f; }
};

}  // namespace slamkern::SLAMKERN_ISA

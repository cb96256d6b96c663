// bfloat16 and float16 to and from float32, exact one way and rounded to nearest even the other, in integer code that
// vectorizes on every instruction set.
#pragma once

#include "math.h"

namespace slamkern::SLAMKERN_ISA {

struct BFloat16 {
  static float load(uint16_t x) { return bits_as<float>(uint32_t{x} << 16); }
  static uint16_t store(float x) {
    const uint32_t bits = bits_as<uint32_t>(x);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return static_cast<uint16_t>(x != x ? 0x7fc0 : rounded);
  }
};

struct Float16 {
  static float load(uint16_t x) {
    const uint32_t magnitude = x & 0x7fffu, sign = (uint32_t{x} & 0x8000u) << 16;
    // Shifted in place the exponent is 112 too small, which the product repairs, for subnormals too.
    const uint32_t finite = bits_as<uint32_t>(bits_as<float>(magnitude << 13) * 0x1p112f);
    const uint32_t special = 0x7f800000u | (magnitude << 13);  // infinity or NaN
    return bits_as<float>(sign | (magnitude >= 0x7c00u ? special : finite));
  }
  static uint16_t store(float x) {
    const uint32_t bits = bits_as<uint32_t>(x);
    const uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
    const uint32_t normal = (magnitude + 0xfff + ((magnitude >> 13) & 1) - (112u << 23)) >> 13;
    // Below 2^-14 adding 0.5 leaves the subnormal, rounded, in the low bits.
    const uint32_t subnormal = bits_as<uint32_t>(bits_as<float>(magnitude) + 0.5f) - bits_as<uint32_t>(0.5f);
    uint32_t half = magnitude < (113u << 23) ? subnormal : normal;
    half = magnitude >= 0x477ff000u ? 0x7c00u : half;  // 65520 and more round to infinity
    half = magnitude > 0x7f800000u ? 0x7e00u : half;
    return static_cast<uint16_t>(sign | half);
  }
};

}  // namespace slamkern::SLAMKERN_ISA

// bf16 numbers, two per word, and floats as bits.
#pragma once
#include "team.h"

typedef unsigned short u16;

// Eight bf16 numbers, as wide as one load.
struct alignas(16) Quad {
  u32 word[4];
};

#ifdef EK_HOST
EK_FN float as_float(u32 bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}
EK_FN u32 as_bits(float value) {
  u32 bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
}
EK_FN u64 double_bits(double value) {
  u64 bits;
  __builtin_memcpy(&bits, &value, 8);
  return bits;
}
#else
EK_FN float as_float(u32 bits) { return __uint_as_float(bits); }
EK_FN u32 as_bits(float value) { return __float_as_uint(value); }
EK_FN u64 double_bits(double value) { return (u64)__double_as_longlong(value); }
#endif

EK_FN float wide(u16 number) { return as_float((u32)number << 16); }
EK_FN float wide_low(u32 pair) { return as_float(pair << 16); }
EK_FN float wide_high(u32 pair) { return as_float(pair & 0xffff0000u); }

// Rounds to the nearest, ties to even. NaN stays NaN.
EK_FN u16 narrow(float value) {
  u32 bits = as_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (u16)((bits >> 16) | 0x40u);
  return (u16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

EK_FN u32 narrow_pair(float low, float high) {
#ifdef EK_HOST
  return (u32)narrow(low) | (u32)narrow(high) << 16;
#else
  u32 pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#endif
}

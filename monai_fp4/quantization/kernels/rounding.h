// Rounding to E4M3, E2M1 and BF16, to nearest and stochastically, and the random bits for it (rounding.py, philox.py).
#pragma once

#include "vectors.h"

namespace {

INLINE I power_bits(F x, int32_t smallest) { return larger(bits<I>(x) & EXPONENT, splat(smallest)); }

// To the nearest of a small float format: adding 1.5 * 2^(23 - mantissa bits) times the power of two leaves no bits
// below.
INLINE F round_small(F x, int mantissa_bits, int32_t smallest_normal) {
  const F magic = bits<F>(power_bits(x, smallest_normal) + (((23 - mantissa_bits) << 23) | 0x400000));
  return (x + magic) - magic;
}
INLINE F round_e4m3(F x) { return round_small(x, 3, 0x3c800000); }
// The magic number must not overflow, so not for magnitudes from 2^110; -0 becomes +0.
INLINE F round_bf16(F x) { return round_small(x, 7, 0x00800000); }
// A NaN may get lost in these two, but a block that holds one has a NaN scale.
INLINE F round_e2m1(F x) { return round_small(magnitude_at_most(x, 6.0f), 1, 0x3f800000); }

INLINE F round_e2m1_stochastic(F x, F byte) {  // `byte` holds random numbers from 0 to 255
  F m = bits<F>(smaller(magnitude_bits(x), splat(0x40c00000)));  // 6
  m = multiply_add(bits<F>(power_bits(m, 0x3f800000) - (9 << 23)), byte, m);  // byte / 256 of a step of half the power
  // Down to the grid: above 1, that is to cut the mantissa after its first bit; below, to 0.5 or 0.
  const I cut = bits<I>(m) & (int32_t)0xffc00000;
#if AVX512
  // Both at once: numbers that are cut are multiples of a half from 1 on.
  const I grid{(I::Part)_mm512_roundscale_ps((__m512)cut.part[0], 1 << 4 | _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC)};
#else
  const I half = select(m < 1.0f, splat(0x3f000000), cut);
  const I grid = select(m < 0.5f, I{}, half);
#endif
  return bits<F>(bits<I>(x) & ~MAGNITUDE | grid) + splat(0.0f);  // the sum turns -0 into +0
}

// ------------------------------------------------------------------------------------------------ random bits

// Philox4x32-10 of 16 counters. A word stands in the lower half of a 64-bit lane, where the product of two has room,
// with anything in the upper half. Even and odd blocks go side by side, since one alone waits for its products.
struct Words {
  L word[4][2];
};
INLINE Words philox(int64_t first, int64_t step, uint64_t key) {
  L c0[2], c1[2], c2[2], c3[2];
  each<2>(EACH(half) {
    constexpr uint64_t blocks[] = {half, half + 2, half + 4, half + 6, half + 8, half + 10, half + 12, half + 14};
    c0[half] = load<L>(blocks) * (uint64_t)step + (uint64_t)first;
    c1[half] = c0[half] >> 32;
    c2[half] = c3[half] = L{};
  });
  uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
  each<10>(EACH() {
    each<2>(EACH(half) {
      const L p0 = product(c0[half], 0xD2511F53u), p1 = product(c2[half], 0xCD9E8D57u);
      c0[half] = (p1 >> 32) ^ c1[half] ^ (uint64_t)k0;
      c2[half] = (p0 >> 32) ^ c3[half] ^ (uint64_t)k1;
      c1[half] = p1;
      c3[half] = p0;
    });
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  });
  Words words;
  each<2>(EACH(half) {
    words.word[0][half] = c0[half];
    words.word[1][half] = c1[half];
    words.word[2][half] = c2[half];
    words.word[3][half] = c3[half];
  });
  return words;
}

// Byte k of 16 blocks is byte k % 4 of word k / 4.
template <int index> INLINE I column_word(const Words &words) {
  return bits<I>((words.word[index][0] & 0xffffffffu) | (words.word[index][1] << 32));
}
INLINE F column_byte(I word, int k) { return convert<F>((word >> (8 * (k % 4))) & 0xff); }

// The 16 bytes of each block side by side, as a quarter of one of four vectors.
struct Bytes {
  I vector[4];
};
INLINE Bytes row_bytes(const Words &words) {
  Bytes bytes;
  each<2>(EACH(half) {
    const I a = bits<I>(words.word[0][half]), b = bits<I>(words.word[1][half]);
    const I c = bits<I>(words.word[2][half]), d = bits<I>(words.word[3][half]);
    bytes.vector[2 * half] = twos_low(ones_low(a, b), ones_low(c, d));
    bytes.vector[2 * half + 1] = twos_low(ones_high(a, b), ones_high(c, d));
  });
  return bytes;
}
constexpr int place_of_block(int block) { return 16 * (4 * (block % 2 * 2 + block / 2 % 2) + block / 4); }
INLINE F row_byte(const Bytes &bytes, int block) {
  return float_bytes((const char *)&bytes + place_of_block(block));
}

}  // namespace

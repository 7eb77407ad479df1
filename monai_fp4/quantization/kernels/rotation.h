// The random Hadamard transform of a tile whose vectors are positions: rotation.py, sums in its order.
#pragma once

#include <cmath>

#include "rounding.h"

namespace {

// Columns are those of diag(signs) @ H16, whose numbers are +1 and -1.
constexpr int SIGNS[N] = {1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1};
constexpr bool negative(int k, int j) {
  int ones = k & j, parity = 0;
  while (ones) parity ^= 1, ones &= ones - 1;
  return (SIGNS[k] < 0) != (parity != 0);
}

struct Range {  // of the magnitudes in each lane; bits are doubled, which takes the sign away
  U largest, smallest;  // the smallest that is not zero, less one; all ones if there is none
};
INLINE Range empty_range() { return {U{}, ~U{}}; }
INLINE void extend(Range &range, F x) {
  const U twice = bits<U>(x) * 2, less = twice - 1;
  range.largest = larger(twice, range.largest);
  range.smallest = smaller(less, range.smallest);
}
INLINE Range range_of(const F *t) {
  Range range = empty_range();
  each<N>(EACH(i) { extend(range, t[i]); });
  return range;
}
// Whether a quarter of any number may be inexact, or (BF16) any sum may be subnormal, or any may be too large for
// round_bf16.
INLINE bool is_extreme(const Range &range, int64_t dtype) {
  const uint32_t limit = dtype == BF16 ? 0x0d800000 : 0x01800000;  // 2^-100, 2^-124
  const uint32_t large = 0x71800000;                               // 2^100
  return any((range.smallest < 2 * limit - 1) | (range.largest >= 2 * large));
}
// Whether 16 BF16 numbers of each lane add up without rounding in whatever order: 8 bits, moved by the distance of
// their exponents, and 4 more for the sum, are within the 24 of FP32.
INLINE bool sums_are_exact(const Range &range) {
  return !any(bits<I>(range.largest >> 24) - bits<I>(range.smallest >> 24) > 11);
}

// Fused multiply-adds in the plain path's order, by way of doubles: their 53 bits make the double rounding harmless.
inline void rotate_block(float *x, int64_t dtype) {
  const float tiny = 0x1p-126f;
  float y[N];
  for (int j = 0; j < N; ++j) {
    float sum = 0;
    for (int step = 0; step < N; ++step) {
      const int k = dtype == BF16 ? step ^ 1 : step;
      const float value = dtype == BF16 && std::fabs(x[k]) < tiny ? 0.0f : x[k];
      sum = (float)((double)sum + (double)value * (negative(k, j) ? -0.25 : 0.25));
      if (dtype == BF16 && std::fabs(sum) < tiny) sum = 0.0f;
    }
    y[j] = sum;
  }
  std::memcpy(x, y, sizeof y);
}
// Numbers out of the ordinary, one block after another.
NOINLINE void rotate_extreme(F *t, int64_t dtype) {
  for (int lane = 0; lane < N; ++lane) {
    float x[N];
    for (int k = 0; k < N; ++k) x[k] = t[k][lane];
    rotate_block(x, dtype);
    for (int k = 0; k < N; ++k) ((float *)(t + k))[lane] = x[k];
  }
  for (int k = 0; k < N; ++k) t[k] = bits<F>(narrow_bf16_bits(t[k]));
}

INLINE F add(F sum, F x, bool minus, bool fused) {
#if AVX512 || AVX2
  // A processor has adders and multipliers; a sum of half of each takes half the time. A product with 1 is exact.
  if (fused) return multiply_add(x, splat(minus ? -1.0f : 1.0f), sum);
#else
  (void)fused;
#endif
  return minus ? sum - x : sum + x;
}

constexpr int distinct_sums(int k) { return k < 1 ? 1 : k < 2 ? 2 : k < 4 ? 4 : k < 8 ? 8 : 16; }

// Sixteen sums, each in the order of the numbers. While only numbers before 2^n have been added, the sums j and j + 2^n
// are the same, so that one of them is formed: that makes 170 additions of 256. `pairwise`: in the order of BF16.
template <bool pairwise> INLINE void rotate_in_order(F *t) {
  F x[N];
  each<N>(EACH(k) { x[k] = t[k] * splat(0.25f); });
  t[0] = F{};
  each<N>(EACH(step) {
    constexpr int k = pairwise ? step ^ 1 : step;
    constexpr int count = distinct_sums(pairwise ? step | 1 : step);
    constexpr int before = step == 0 ? 1 : distinct_sums(pairwise ? (step - 1) | 1 : step - 1);
    each<count>(EACH(left) {
      constexpr int j = count - 1 - left;  // those that others start from come last
      t[j] = add(t[j % before], x[k], negative(k, j), step % 2 == 1);
    });
  });
}

// The same sums by butterflies, a quarter of the additions: for numbers whose sums are exact in any order.
INLINE void rotate_by_butterflies(F *t) {
  each<N>(EACH(k) { t[k] = t[k] * splat(SIGNS[k] < 0 ? -0.25f : 0.25f); });
  each<4>(EACH(n) {
    each<N>(EACH(k) {
      constexpr int distance = 1 << n;
      if constexpr (!(k & distance)) {
        const F sum = t[k] + t[k + distance];
        t[k + distance] = t[k] - t[k + distance];
        t[k] = sum;
      }
    });
  });
}

// `ordinary`: the caller knows that no number of the whole tensor is extreme.
INLINE void rotate(F *t, int64_t dtype, bool ordinary) {
  if (dtype != BF16 && ordinary) {
    rotate_in_order<false>(t);
  } else {
    const Range range = range_of(t);
    if (__builtin_expect(is_extreme(range, dtype), 0)) {
      F own[N];  // of which an address is taken: not the tile, which would then stay in memory
      each<N>(EACH(k) { own[k] = t[k]; });
      rotate_extreme(own, dtype);
      each<N>(EACH(k) { t[k] = own[k]; });
      return;
    }
    if (dtype != BF16)
      rotate_in_order<false>(t);
    else if (sums_are_exact(range))
      rotate_by_butterflies(t);
    else
      rotate_in_order<true>(t);
  }
  each<N>(EACH(k) { t[k] = round_bf16(t[k]); });
}

}  // namespace

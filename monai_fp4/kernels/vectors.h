// Vectors of 16 numbers, for every kernel that works on tiles of 16 x 16: types, formats, shuffles.
//
// Vectors are those of the GCC and clang extension, so the compiler picks the instructions and splits what the
// processor has no register for. Intrinsics stand only where the extension has no word for an instruction that matters,
// always beside a version without them. Build without -ffast-math and with -ffp-contract=off.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#if defined(__AVX512F__) && defined(__AVX512DQ__)
#define AVX512 1
#include <immintrin.h>
#else
#define AVX512 0
#endif

namespace {

constexpr int N = 16;  // numbers in a block, blocks in a tile, lanes in a vector

typedef float F __attribute__((vector_size(4 * N)));
typedef int32_t I __attribute__((vector_size(4 * N)));
typedef uint32_t U __attribute__((vector_size(4 * N)));
typedef int16_t H __attribute__((vector_size(2 * N)));
typedef uint8_t B __attribute__((vector_size(N)));
typedef uint64_t L __attribute__((vector_size(8 * N / 2)));

constexpr float FLOAT_MAX = 3.402823466e+38f;
constexpr int32_t MAGNITUDE = 0x7fffffff, EXPONENT = 0x7f800000;

enum Dtype : int64_t { F32, BF16, F16 };
inline int64_t width(int64_t dtype) { return dtype == F32 ? 4 : 2; }

#define INLINE inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline))

// f(0), f(1), ..., each with its number as a compile-time constant. A loop that the compiler unrolls late leaves the
// vectors of a tile in memory; with constant indices from the start they live in registers.
template <class Function, int... index> INLINE void each(Function f, std::integer_sequence<int, index...>) {
  (f(std::integral_constant<int, index>{}), ...);
}
template <int count, class Function> INLINE void each(Function f) {
  each(f, std::make_integer_sequence<int, count>{});
}
#define EACH(i) [&](auto i) __attribute__((always_inline))

template <class To, class From> INLINE To bits(From x) {
  To y;
  static_assert(sizeof(To) == sizeof(From), "same size");
  std::memcpy(&y, &x, sizeof y);
  return y;
}
template <class T> INLINE T load(const void *from) {
  T x;
  std::memcpy(&x, from, sizeof x);
  return x;
}
INLINE I splat(int32_t x) { return I{} + x; }
INLINE F splat(float x) { return F{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }  // 0 + x would be computed
INLINE I larger(I a, I b) { return a > b ? a : b; }
INLINE I smaller(I a, I b) { return a < b ? a : b; }
INLINE I magnitude_bits(F x) { return bits<I>(x) & MAGNITUDE; }  // integers in the order of magnitudes, NaN on top
INLINE F at_most(F x, float limit) { return x > splat(limit) ? splat(limit) : x; }  // NaN stays
INLINE F magnitude_at_most(F x, float limit) {  // NaN may get lost
#if AVX512
  return (F)_mm512_range_ps((__m512)x, _mm512_set1_ps(limit), 2);  // 2: the smaller magnitude, with the sign of x
#else
  x = x < splat(limit) ? x : splat(limit);
  return x > splat(-limit) ? x : splat(-limit);
#endif
}
INLINE F multiply_add(F a, F b, F c) {  // fused or not: only for exact products
#if AVX512
  return (F)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
  return a * b + c;
#endif
}
inline int32_t largest_lane(I m) {
  int32_t x = 0;
  for (int lane = 0; lane < N; ++lane) x = m[lane] > x ? m[lane] : x;
  return x;
}
INLINE bool any(I mask) {  // of lanes that are 0 or -1
#if AVX512
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#else
  L halves = bits<L>(mask);
  uint64_t x = 0;
  for (int lane = 0; lane < N / 2; ++lane) x |= halves[lane];
  return x != 0;
#endif
}

// ------------------------------------------------------------------------------------------------ formats

INLINE F float_bytes(B x) {
#if AVX512
  return (F)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32((__m128i)x));  // GCC takes the other way one number after another
#else
  return __builtin_convertvector(__builtin_convertvector(x, I), F);
#endif
}
INLINE F widen_bf16(H x) { return bits<F>(__builtin_convertvector(x, I) << 16); }
INLINE F widen_f16(H x) {
  const I wide = __builtin_convertvector(x, I);
  const I magnitude = (wide & 0x7fff) << 13;
  F value = bits<F>(magnitude) * splat(0x1p112f);  // moves the exponent's bias, and makes subnormals normal
  value = (wide & 0x7c00) == 0x7c00 ? bits<F>(magnitude | EXPONENT) : value;
  return bits<F>(bits<I>(value) | ((wide & 0x8000) << 16));
}
INLINE I narrow_bf16_bits(F x) {  // to the upper 16 bits, to nearest even; the lower ones are zero
  const I u = bits<I>(x);
  const I rounded = (u + 0x7fff + ((u >> 16) & 1)) & (int32_t)0xffff0000;
  return x != x ? splat(0x7fc00000) : rounded;
}
INLINE I narrow_f16_bits(F x) {  // to the lower 16 bits, to nearest even
  const I u = bits<I>(x), magnitude = u & MAGNITUDE;
  const I subnormal = bits<I>(bits<F>(magnitude) + splat(0.5f)) - 0x3f000000;  // 0.5 has the last bit 2^-24
  const I normal = (magnitude + 0xfff + ((magnitude >> 13) & 1) - (112 << 23)) >> 13;
  I half = magnitude < 0x38800000 ? subnormal : normal;
  half = half > 0x7c00 ? splat(0x7c00) : half;
  half = magnitude >= 0x47800000 ? splat(0x7c00) : half;
  half = magnitude > EXPONENT ? splat(0x7e00) : half;
  return half | ((u >> 16) & 0x8000);
}
INLINE H low_halves(I x) { return __builtin_convertvector(x, H); }
INLINE H high_halves(I x) { return low_halves(bits<I>(bits<U>(x) >> 16)); }

inline float load_one(const char *from, int64_t dtype) {
  if (dtype == F32) return load<float>(from);
  H x{};
  x[0] = load<int16_t>(from);
  return (dtype == BF16 ? widen_bf16(x) : widen_f16(x))[0];
}

// ------------------------------------------------------------------------------------------------ shuffles

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#endif
#endif
#ifndef SHUFFLE
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, I{__VA_ARGS__})
#endif

// The steps of a transposition, chosen to be single instructions: the first two stay within a quarter of a vector,
// where shuffles cost about half.
INLINE I ones_low(I a, I b) { return SHUFFLE(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29); }
INLINE I ones_high(I a, I b) { return SHUFFLE(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31); }
INLINE I twos_low(I a, I b) { return SHUFFLE(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29); }
INLINE I twos_high(I a, I b) { return SHUFFLE(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31); }
INLINE I quarters_even(I a, I b) { return SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27); }
INLINE I quarters_odd(I a, I b) { return SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31); }

// Rows become columns.
INLINE void transpose(F *t) {
  I x[N], y[N];
  each<N>(EACH(i) { x[i] = bits<I>(t[i]); });
  each<N / 2>(EACH(i) {
    y[2 * i] = ones_low(x[2 * i], x[2 * i + 1]);
    y[2 * i + 1] = ones_high(x[2 * i], x[2 * i + 1]);
  });
  each<N / 4>(EACH(i) {  // now x[4 * i + c] holds rows 4 * i to 4 * i + 3 of the columns c, c + 4, c + 8 and c + 12
    x[4 * i] = twos_low(y[4 * i], y[4 * i + 2]);
    x[4 * i + 1] = twos_high(y[4 * i], y[4 * i + 2]);
    x[4 * i + 2] = twos_low(y[4 * i + 1], y[4 * i + 3]);
    x[4 * i + 3] = twos_high(y[4 * i + 1], y[4 * i + 3]);
  });
  each<N / 4>(EACH(c) {
    const I even0 = quarters_even(x[c], x[c + 4]), even1 = quarters_even(x[c + 8], x[c + 12]);
    const I odd0 = quarters_odd(x[c], x[c + 4]), odd1 = quarters_odd(x[c + 8], x[c + 12]);
    t[c] = bits<F>(quarters_even(even0, even1));
    t[c + 4] = bits<F>(quarters_even(odd0, odd1));
    t[c + 8] = bits<F>(quarters_odd(even0, even1));
    t[c + 12] = bits<F>(quarters_odd(odd0, odd1));
  });
}

// All lanes of each of 16 vectors put together by `join`, as one vector: the same steps, with half the vectors after
// each.
template <class Join> INLINE I join_rows(const I *x, Join join) {
  I y[N / 2], z[N / 4];
  each<N / 2>(EACH(i) { y[i] = join(ones_low(x[2 * i], x[2 * i + 1]), ones_high(x[2 * i], x[2 * i + 1])); });
  each<N / 4>(EACH(i) { z[i] = join(twos_low(y[2 * i], y[2 * i + 1]), twos_high(y[2 * i], y[2 * i + 1])); });
  const I low = join(quarters_even(z[0], z[1]), quarters_odd(z[0], z[1]));
  const I high = join(quarters_even(z[2], z[3]), quarters_odd(z[2], z[3]));
  return join(quarters_even(low, high), quarters_odd(low, high));
}

}  // namespace

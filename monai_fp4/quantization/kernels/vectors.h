// Vectors of 16 numbers, for every kernel that works on tiles of 16 x 16: types, formats, shuffles.
//
// A vector is made of as few parts as the processor has registers for: one with AVX-512, two with AVX2, four elsewhere.
// A part is a vector of the GCC and clang extension, so the compiler picks the instructions. The extension could split
// vectors by itself, but GCC takes a selection or a shuffle of those that are too long for a register one number after
// another. Intrinsics stand only where the extension has no word for an instruction that matters, always beside a
// version without them. Build without -ffast-math and with -ffp-contract=off.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#if defined(__AVX512F__) && defined(__AVX512DQ__)
#define AVX512 1
#define AVX2 0
#define PARTS 1
#include <immintrin.h>
#elif defined(__AVX2__) && defined(__FMA__)
#define AVX512 0
#define AVX2 1
#define PARTS 2
#include <immintrin.h>
#else
#define AVX512 0
#define AVX2 0
#define PARTS 4
#ifdef __SSE2__
#include <emmintrin.h>
#endif
#endif

#define INLINE inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline))

namespace {

constexpr int N = 16;  // numbers in a block, blocks in a tile, lanes in a vector

// f(0), f(1), ..., each with its number as a compile-time constant. A loop that the compiler unrolls late leaves the
// vectors of a tile in memory; with constant indices from the start they live in registers.
template <class Function, int... index> INLINE void each(Function f, std::integer_sequence<int, index...>) {
  (f(std::integral_constant<int, index>{}), ...);
}
template <int count, class Function> INLINE void each(Function f) {
  each(f, std::make_integer_sequence<int, count>{});
}
#define EACH(i) [&](auto i) __attribute__((always_inline))

// ------------------------------------------------------------------------------------------------ vectors

template <class T, int lanes = N> struct Vector {
  typedef T Part __attribute__((vector_size(sizeof(T) * lanes / PARTS)));
  Part part[PARTS];
  T operator[](int lane) const { return part[lane / (lanes / PARTS)][lane % (lanes / PARTS)]; }
};
typedef Vector<float> F;
typedef Vector<int32_t> I;
typedef Vector<uint32_t> U;
typedef Vector<int16_t> H;
typedef Vector<uint64_t, N / 2> L;

// A vector whose part i is f(i).
template <class V, class Function> INLINE V by_parts(Function f) {  // not with each(), to be compiled sooner
  constexpr std::integral_constant<int, 0> i0;
  constexpr std::integral_constant<int, 1> i1;
  constexpr std::integral_constant<int, 2> i2;
  constexpr std::integral_constant<int, 3> i3;
  if constexpr (PARTS == 1)
    return {f(i0)};
  else if constexpr (PARTS == 2)
    return {f(i0), f(i1)};
  else
    return {f(i0), f(i1), f(i2), f(i3)};
}
template <class T, int lanes, int... lane> INLINE Vector<T, lanes> splat(T x, std::integer_sequence<int, lane...>) {
  typedef typename Vector<T, lanes>::Part Part;
  return by_parts<Vector<T, lanes>>(EACH() { return Part{((void)lane, x)...}; });  // 0 + x would be computed
}
template <class T, int lanes = N> INLINE Vector<T, lanes> splat(T x) {
  return splat<T, lanes>(x, std::make_integer_sequence<int, lanes / PARTS>{});
}

template <class T> struct Itself { typedef T type; };  // a type that is not deduced from the argument
#define OPERATOR(op, Result)                                                                             \
  template <class T, int lanes> INLINE Result operator op(Vector<T, lanes> a, Vector<T, lanes> b) {      \
    return by_parts<Result>(EACH(i) { return a.part[i] op b.part[i]; });                                 \
  }                                                                                                      \
  template <class T, int lanes>                                                                          \
  INLINE Result operator op(Vector<T, lanes> a, typename Itself<T>::type b) {                            \
    return by_parts<Result>(EACH(i) { return a.part[i] op b; });                                         \
  }
#define SAME Vector<T, lanes>
OPERATOR(+, SAME)
OPERATOR(-, SAME)
OPERATOR(*, SAME)
OPERATOR(/, SAME)
OPERATOR(&, SAME)
OPERATOR(|, SAME)
OPERATOR(^, SAME)
OPERATOR(<<, SAME)
OPERATOR(>>, SAME)
OPERATOR(<, I)  // lanes are 0 or -1
OPERATOR(<=, I)
OPERATOR(>, I)
OPERATOR(>=, I)
OPERATOR(==, I)
OPERATOR(!=, I)
template <class T, int lanes> INLINE Vector<T, lanes> operator~(Vector<T, lanes> x) {
  return by_parts<Vector<T, lanes>>(EACH(i) { return ~x.part[i]; });
}
template <class T> INLINE Vector<T> select(I mask, Vector<T> a, Vector<T> b) {
  return by_parts<Vector<T>>(EACH(i) { return mask.part[i] ? a.part[i] : b.part[i]; });
}

// Memory is copied by parts: a copy of the whole would leave the vector in memory.
template <class V> INLINE V load(const void *from) {
  V x;
  each<PARTS>(EACH(i) { std::memcpy(&x.part[i], (const char *)from + i * sizeof x.part[i], sizeof x.part[i]); });
  return x;
}
template <class V> INLINE void store(void *to, V x) {
  each<PARTS>(EACH(i) { std::memcpy((char *)to + i * sizeof x.part[i], &x.part[i], sizeof x.part[i]); });
}
template <class To, class From> INLINE To bits(From x) {
  if constexpr (std::is_scalar_v<To>) {
    To y;
    static_assert(sizeof(To) == sizeof(From), "same size");
    std::memcpy(&y, &x, sizeof y);
    return y;
  } else {
    return by_parts<To>(EACH(i) { return (typename To::Part)x.part[i]; });
  }
}
template <class To, class From> INLINE To convert(From x) {
  return by_parts<To>(EACH(i) { return __builtin_convertvector(x.part[i], typename To::Part); });
}

// ------------------------------------------------------------------------------------------------ arithmetic

constexpr float FLOAT_MAX = 3.402823466e+38f;
constexpr int32_t MAGNITUDE = 0x7fffffff, EXPONENT = 0x7f800000;

enum Dtype : int64_t { F32, BF16, F16 };
inline int64_t width(int64_t dtype) { return dtype == F32 ? 4 : 2; }

// In one expression, in which compilers see the single instruction. Of NaN and another these give b.
template <class T> INLINE Vector<T> larger(Vector<T> a, Vector<T> b) {
  return by_parts<Vector<T>>(EACH(i) { return a.part[i] > b.part[i] ? a.part[i] : b.part[i]; });
}
template <class T> INLINE Vector<T> smaller(Vector<T> a, Vector<T> b) {
  return by_parts<Vector<T>>(EACH(i) { return a.part[i] < b.part[i] ? a.part[i] : b.part[i]; });
}
INLINE I magnitude_bits(F x) { return bits<I>(x) & MAGNITUDE; }  // integers in the order of magnitudes, NaN on top
INLINE F at_most(F x, float limit) { return select(x > limit, splat(limit), x); }  // NaN stays
INLINE F magnitude_at_most(F x, float limit) {  // NaN may get lost
#if AVX512
  // 2: the smaller magnitude, with the sign of x
  return {(F::Part)_mm512_range_ps((__m512)x.part[0], _mm512_set1_ps(limit), 2)};
#else
  return larger(smaller(x, splat(limit)), splat(-limit));
#endif
}
INLINE F multiply_add(F a, F b, F c) {  // fused or not: only for exact products
#if AVX512
  return {(F::Part)_mm512_fmadd_ps((__m512)a.part[0], (__m512)b.part[0], (__m512)c.part[0])};
#elif AVX2
  return by_parts<F>(EACH(i) {
    return (F::Part)_mm256_fmadd_ps((__m256)a.part[i], (__m256)b.part[i], (__m256)c.part[i]);
  });
#else
  return a * b + c;
#endif
}
INLINE L product(L a, uint32_t factor) {  // of the lower half of each lane
#if AVX512
  return {(L::Part)_mm512_mul_epu32((__m512i)a.part[0], _mm512_set1_epi64(factor))};
#elif AVX2
  return by_parts<L>(EACH(i) { return (L::Part)_mm256_mul_epu32((__m256i)a.part[i], _mm256_set1_epi64x(factor)); });
#elif defined(__SSE2__)
  return by_parts<L>(EACH(i) { return (L::Part)_mm_mul_epu32((__m128i)a.part[i], _mm_set1_epi64x(factor)); });
#else
  return (a & 0xffffffffu) * factor;
#endif
}
inline int32_t largest_lane(I m) {
  int32_t x = 0;
  for (int lane = 0; lane < N; ++lane) x = m[lane] > x ? m[lane] : x;
  return x;
}
INLINE bool any(I mask) {  // of lanes that are 0 or -1
#if AVX512
  return _mm512_test_epi32_mask((__m512i)mask.part[0], (__m512i)mask.part[0]) != 0;
#else
  const L halves = bits<L>(mask);
  L::Part all = halves.part[0];
  each<PARTS - 1>(EACH(i) { all |= halves.part[i + 1]; });
  uint64_t x = 0;
  for (int lane = 0; lane < N / 2 / PARTS; ++lane) x |= all[lane];
  return x != 0;
#endif
}

// ------------------------------------------------------------------------------------------------ formats

INLINE F float_bytes(const void *from) {  // the extension would take one byte after another
#if AVX512
  return {(F::Part)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)from)))};
#elif AVX2
  return by_parts<F>(EACH(i) {
    const __m128i bytes = _mm_loadl_epi64((const __m128i *)((const char *)from + 8 * i));
    return (F::Part)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
  });
#else
  return convert<F>(convert<I>(load<Vector<uint8_t>>(from)));
#endif
}
INLINE F widen_bf16(H x) { return bits<F>(convert<I>(x) << 16); }
INLINE F widen_f16(H x) {
  const I wide = convert<I>(x);
  const I magnitude = (wide & 0x7fff) << 13;
  F value = bits<F>(magnitude) * splat(0x1p112f);  // moves the exponent's bias, and makes subnormals normal
  value = select((wide & 0x7c00) == 0x7c00, bits<F>(magnitude | EXPONENT), value);
  return bits<F>(bits<I>(value) | ((wide & 0x8000) << 16));
}
INLINE I narrow_bf16_bits(F x) {  // to the upper 16 bits, to nearest even; the lower ones are zero
  const I u = bits<I>(x);
  const I rounded = (u + 0x7fff + ((u >> 16) & 1)) & (int32_t)0xffff0000;
  return select(x != x, splat(0x7fc00000), rounded);
}
INLINE I narrow_f16_bits(F x) {  // to the lower 16 bits, to nearest even
  const I u = bits<I>(x), magnitude = u & MAGNITUDE;
  const I subnormal = bits<I>(bits<F>(magnitude) + splat(0.5f)) - 0x3f000000;  // 0.5 has the last bit 2^-24
  const I normal = (magnitude + 0xfff + ((magnitude >> 13) & 1) - (112 << 23)) >> 13;
  I half = select(magnitude < 0x38800000, subnormal, normal);
  half = select(half > 0x7c00, splat(0x7c00), half);
  half = select(magnitude >= 0x47800000, splat(0x7c00), half);
  half = select(magnitude > EXPONENT, splat(0x7e00), half);
  return half | ((u >> 16) & 0x8000);
}
INLINE H low_halves(I x) {
#if AVX2
  const I low = x & 0xffff;
  const __m256i packed = _mm256_packus_epi32((__m256i)low.part[0], (__m256i)low.part[1]);
  const __m256i ordered = _mm256_permute4x64_epi64(packed, 0xd8);
  return {(H::Part)_mm256_castsi256_si128(ordered), (H::Part)_mm256_extracti128_si256(ordered, 1)};
#else
  return convert<H>(x);
#endif
}
INLINE H high_halves(I x) { return low_halves(bits<I>(bits<U>(x) >> 16)); }

inline float load_one(const char *from, int64_t dtype) {
  float number;
  int16_t half;
  if (dtype == F32) return std::memcpy(&number, from, sizeof number), number;
  std::memcpy(&half, from, sizeof half);
  return (dtype == BF16 ? widen_bf16(splat(half)) : widen_f16(splat(half)))[0];
}

// ------------------------------------------------------------------------------------------------ shuffles

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#endif
#endif
#ifndef SHUFFLE
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, I::Part{__VA_ARGS__})
#endif

// Each quarter of the result takes four lanes of the same quarters of a (0 to 3) and b (4 to 7): one instruction.
template <int... from, int... lane> INLINE I within_quarters(I a, I b, std::integer_sequence<int, lane...>) {
  constexpr int pattern[] = {from...}, lanes = N / PARTS;
  return by_parts<I>(EACH(i) {
    return SHUFFLE(a.part[i], b.part[i],
                   (lane / 4 * 4 + pattern[lane % 4] % 4 + pattern[lane % 4] / 4 * lanes)...);
  });
}
template <int... from> INLINE I within_quarters(I a, I b) {
  return within_quarters<from...>(a, b, std::make_integer_sequence<int, N / PARTS>{});
}
INLINE I ones_low(I a, I b) { return within_quarters<0, 4, 1, 5>(a, b); }
INLINE I ones_high(I a, I b) { return within_quarters<2, 6, 3, 7>(a, b); }
INLINE I twos_low(I a, I b) { return within_quarters<0, 1, 4, 5>(a, b); }
INLINE I twos_high(I a, I b) { return within_quarters<2, 3, 6, 7>(a, b); }

// Every other quarter of a, then of b.
#if PARTS == 1
INLINE I quarters_even(I a, I b) {
  return {SHUFFLE(a.part[0], b.part[0], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27)};
}
INLINE I quarters_odd(I a, I b) {
  return {SHUFFLE(a.part[0], b.part[0], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31)};
}
#elif PARTS == 2
INLINE I quarters_even(I a, I b) {
  return {SHUFFLE(a.part[0], a.part[1], 0, 1, 2, 3, 8, 9, 10, 11),
          SHUFFLE(b.part[0], b.part[1], 0, 1, 2, 3, 8, 9, 10, 11)};
}
INLINE I quarters_odd(I a, I b) {
  return {SHUFFLE(a.part[0], a.part[1], 4, 5, 6, 7, 12, 13, 14, 15),
          SHUFFLE(b.part[0], b.part[1], 4, 5, 6, 7, 12, 13, 14, 15)};
}
#else
INLINE I quarters_even(I a, I b) { return {a.part[0], a.part[2], b.part[0], b.part[2]}; }
INLINE I quarters_odd(I a, I b) { return {a.part[1], a.part[3], b.part[1], b.part[3]}; }
#endif

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

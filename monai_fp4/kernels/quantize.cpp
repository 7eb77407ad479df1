// NVFP4 quantization of a strided tensor on a CPU: the numbers of monai_fp4/numerics.py, bit for bit.
//
// The unit of work is a tile of 16 blocks of 16 numbers, held as 16 vectors of 16 lanes, in one of two orders:
//
//   rows     a vector is one block (the quantized axis K lies along memory, or has any stride);
//   columns  a vector is position k of 16 neighbouring blocks (another axis lies along memory, as in a transposed view).
//
// Only the reading, the search for block maxima and the writing know the order. Vectors are those of the GCC and clang
// extension, so the compiler picks the instructions. Maxima are taken of the bits without sign, as integers: that orders
// all magnitudes, with NaN above infinity. Build without -ffast-math and with -ffp-contract=off.

#include <cmath>
#include <cstdint>
#include <cstring>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

constexpr int N = 16;  // numbers in a block, blocks in a tile, lanes in a vector
constexpr int MAX_AXES = 6;

typedef float F __attribute__((vector_size(4 * N)));
typedef int32_t I __attribute__((vector_size(4 * N)));
typedef uint32_t U __attribute__((vector_size(4 * N)));
typedef int16_t H __attribute__((vector_size(2 * N)));
typedef uint8_t B __attribute__((vector_size(N)));
typedef uint64_t L __attribute__((vector_size(8 * N / 2)));

constexpr float FLOAT_MAX = 3.402823466e+38f;
constexpr int32_t MAGNITUDE = 0x7fffffff, EXPONENT = 0x7f800000;

enum Dtype : int64_t { F32, BF16, F16 };
enum Flag : int64_t { TWO_D = 1, ROTATE = 2, STOCHASTIC = 4, DECODED = 8, PAIRS = 16, GIVEN_AMAX = 32, COLUMNS = 64 };

}  // namespace

// What the caller passes, packed as 64-bit numbers in this order. Strides count elements. The last of `axes` batch axes
// is the inner one: of 16 neighbours along it a tile of columns, or a 16x16 block, is made.
struct Arguments {
  const void *in;
  void *out;         // null: only the maximum is wanted
  float *amax;       // read with GIVEN_AMAX, else written
  float *scales;     // null: not wanted
  int64_t flags, in_dtype, out_dtype, threads;
  uint64_t key;
  int64_t in_length;       // of the axis K of `in`
  int64_t offset, length;  // position k of a block row is in[offset + k], for k below length, and zero outside of `in`
  int64_t out_length;      // positions from `length` to here are written as zeros
  int64_t in_k, out_k;     // strides along K; with PAIRS, out_k is that of a pair
  int64_t axes;
  int64_t size[MAX_AXES], in_stride[MAX_AXES], out_stride[MAX_AXES];
  int64_t block_stride[MAX_AXES];  // of a block's number in the logical tensor: its scale's place and random counter
};

namespace {

// ------------------------------------------------------------------------------------------------ bits and formats

template <class To, class From> inline To bits(From x) {
  To y;
  static_assert(sizeof(To) == sizeof(From), "same size");
  std::memcpy(&y, &x, sizeof y);
  return y;
}
inline I splat(int32_t x) { return I{} + x; }
inline F splat(float x) { return F{} + x; }
inline I larger(I a, I b) { return a > b ? a : b; }
inline F at_most(F x, float limit) { return x > splat(limit) ? splat(limit) : x; }  // NaN stays
// Where either is NaN these may give the other one: only for numbers that a NaN scale makes NaN in the end.
#ifdef __AVX512F__
inline F lower(F a, F b) { return (F)_mm512_min_ps((__m512)a, (__m512)b); }
inline F higher(F a, F b) { return (F)_mm512_max_ps((__m512)a, (__m512)b); }
inline F multiply_add(F a, F b, F c) { return (F)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
#else
inline F lower(F a, F b) { return a < b ? a : b; }
inline F higher(F a, F b) { return a > b ? a : b; }
inline F multiply_add(F a, F b, F c) { return a * b + c; }  // fused or not: only for exact products
#endif

template <class T> inline T load(const void *from) {
  T x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

inline F widen_bf16(H x) { return bits<F>(__builtin_convertvector(x, I) << 16); }
inline F widen_f16(H x) {
  const I wide = __builtin_convertvector(x, I);
  const I magnitude = (wide & 0x7fff) << 13;
  F value = bits<F>(magnitude) * splat(0x1p112f);  // moves the exponent's bias, and makes subnormals normal
  value = (wide & 0x7c00) == 0x7c00 ? bits<F>(magnitude | EXPONENT) : value;
  return bits<F>(bits<I>(value) | ((wide & 0x8000) << 16));
}
inline I narrow_bf16_bits(F x) {  // to the upper 16 bits, to nearest even; the lower ones are zero
  const I u = bits<I>(x);
  const I rounded = (u + 0x7fff + ((u >> 16) & 1)) & (int32_t)0xffff0000;
  return x != x ? splat(0x7fc00000) : rounded;
}
inline I narrow_f16_bits(F x) {  // to the lower 16 bits, to nearest even
  const I u = bits<I>(x), magnitude = u & MAGNITUDE;
  const I subnormal = bits<I>(bits<F>(magnitude) + splat(0.5f)) - 0x3f000000;  // 0.5 has the last bit 2^-24
  const I normal = (magnitude + 0xfff + ((magnitude >> 13) & 1) - (112 << 23)) >> 13;
  I half = magnitude < 0x38800000 ? subnormal : normal;
  half = half > 0x7c00 ? splat(0x7c00) : half;
  half = magnitude >= 0x47800000 ? splat(0x7c00) : half;
  half = magnitude > EXPONENT ? splat(0x7e00) : half;
  return half | ((u >> 16) & 0x8000);
}

template <int64_t dtype> inline F load_as(const char *from) {
  if (dtype == F32) return load<F>(from);
  return dtype == BF16 ? widen_bf16(load<H>(from)) : widen_f16(load<H>(from));
}
inline float load_one(const char *from, int64_t dtype) {
  if (dtype == F32) return load<float>(from);
  H x{};
  x[0] = load<int16_t>(from);
  return (dtype == BF16 ? widen_bf16(x) : widen_f16(x))[0];
}

// ------------------------------------------------------------------------------------------------ rounding

inline I power_bits(F x, int32_t smallest) { return larger(bits<I>(x) & EXPONENT, splat(smallest)); }

// To the nearest of a small float format; adding 1.5 * 2^(23 - mantissa bits) times the power of two leaves no bits below.
inline F round_small(F x, int mantissa_bits, int32_t smallest_normal) {
  const F magic = bits<F>(power_bits(x, smallest_normal) + (((23 - mantissa_bits) << 23) | 0x400000));
  return (x + magic) - magic;
}
inline F round_e4m3(F x) { return round_small(x, 3, 0x3c800000); }
// A NaN may get lost in these two, but a block that holds one has a NaN scale.
inline F round_e2m1(F x) { return round_small(lower(higher(x, splat(-6.0f)), splat(6.0f)), 1, 0x3f800000); }
inline F round_e2m1_stochastic(F x, F byte) {
  F m = lower(bits<F>(bits<I>(x) & MAGNITUDE), splat(6.0f));
  m = multiply_add(bits<F>(power_bits(m, 0x3f800000) - (9 << 23)), byte, m);  // byte / 256 of a step of half the power
  // Down to the grid: above 1, that is to cut the mantissa after its first bit; below, to 0.5 or 0.
  const I cut = bits<I>(m) & (m < splat(1.0f) ? splat((int32_t)0xff800000) : splat((int32_t)0xffc00000));
  const I grid = m < splat(0.5f) ? splat(0) : cut;
  return bits<F>(grid | (bits<I>(x) & ~MAGNITUDE)) + splat(0.0f);  // the sum turns -0 into +0
}

// ------------------------------------------------------------------------------------------------ random bits

// Philox4x32-10 of 16 counters, each word in the lower half of a 64-bit lane, with anything in the upper half.
inline L product(L a, uint64_t factor) {
#ifdef __AVX512F__
  return (L)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64((int64_t)factor));
#else
  return (a & 0xffffffffu) * factor;
#endif
}
struct Words {
  L low[2], high[2];  // of lanes 0 to 7 and 8 to 15: bytes 0 to 7 and 8 to 15 of each block
};
inline Words philox(int64_t first, int64_t step, uint64_t key) {
  Words words;
  for (int half = 0; half < 2; ++half) {
    const L lane = L{0, 1, 2, 3, 4, 5, 6, 7} + (uint64_t)(8 * half);
    L c0 = lane * (uint64_t)step + (uint64_t)first, c1 = c0 >> 32, c2{}, c3{};
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; ++round) {
      const L p0 = product(c0, 0xD2511F53u), p1 = product(c2, 0xCD9E8D57u);
      c0 = (p1 >> 32) ^ c1 ^ (uint64_t)k0;
      c1 = p1;
      c2 = (p0 >> 32) ^ c3 ^ (uint64_t)k1;
      c3 = p0;
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    words.low[half] = (c0 & 0xffffffffu) | (c1 << 32);
    words.high[half] = (c2 & 0xffffffffu) | (c3 << 32);
  }
  return words;
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SHUFFLE __builtin_shufflevector
#endif
#endif
#ifndef SHUFFLE
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, I{__VA_ARGS__})
#endif

// ------------------------------------------------------------------------------------------------ rotation

// Columns are those of diag(signs) @ H16, whose numbers are +1 and -1.
constexpr int SIGNS[N] = {1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1};
constexpr bool negative(int k, int j) {
  int ones = k & j, parity = 0;
  while (ones) parity ^= 1, ones &= ones - 1;
  return (SIGNS[k] < 0) != (parity != 0);
}
struct Matrix {
  float row[N][N];
  constexpr Matrix() : row() {
    for (int k = 0; k < N; ++k)
      for (int j = 0; j < N; ++j) row[k][j] = negative(k, j) ? -0.25f : 0.25f;
  }
};
constexpr Matrix MATRIX;

// Fused multiply-adds in the plain path's order, by way of doubles: their 53 bits make the double rounding harmless.
template <int64_t dtype> void rotate_exactly(const float *x, float *y) {
  const float tiny = 0x1p-126f;
  for (int j = 0; j < N; ++j) {
    float sum = 0;
    for (int step = 0; step < N; ++step) {
      const int k = dtype == BF16 ? step ^ 1 : step;
      const float value = dtype == BF16 && std::fabs(x[k]) < tiny ? 0.0f : x[k];
      sum = (float)((double)sum + (double)value * (double)MATRIX.row[k][j]);
      if (dtype == BF16 && std::fabs(sum) < tiny) sum = 0.0f;
    }
    y[j] = sum;
  }
}

inline int32_t largest_lane(I m) {
  int32_t x = 0;
  for (int lane = 0; lane < N; ++lane) x = m[lane] > x ? m[lane] : x;
  return x;
}

struct Range {  // of the magnitudes in each lane; bits are doubled, which takes the sign away
  U largest, smallest;  // the smallest that is not zero, less one; all ones if there is none
};
inline Range range_of(const F *t) {
  Range range{U{}, U{} - 1};
  for (int i = 0; i < N; ++i) {
    const U twice = bits<U>(t[i]) * 2, less = twice - 1;
    range.largest = twice > range.largest ? twice : range.largest;
    range.smallest = less < range.smallest ? less : range.smallest;
  }
  return range;
}
// Whether a quarter of any number may be inexact, or (BF16) any sum may be subnormal.
template <int64_t dtype> inline bool has_tiny(const Range &range) {
  const uint32_t limit = dtype == BF16 ? 0x0d800000 : 0x01800000;  // 2^-100, 2^-124
  const I tiny = range.smallest < 2 * limit - 1;
  return largest_lane(-tiny) != 0;
}
// Whether 16 BF16 numbers of each lane add up without rounding in whatever order: 8 bits, moved by the distance of their
// exponents, and 4 more for the sum, are within the 24 of FP32. Below 2^126 (biased: 253) none of them overflows, which
// would make infinity or NaN, as the order has it.
inline bool sums_are_exact(const Range &range) {
  const I largest = bits<I>(range.largest >> 24);
  const I far = (largest - bits<I>(range.smallest >> 24) > 11) | (largest > 252);
  return largest_lane(-far) == 0;
}

template <int64_t dtype, bool columns> __attribute__((noinline)) void rotate_tiny(F *t) {
  for (int block = 0; block < N; ++block) {
    float x[N], y[N];
    for (int k = 0; k < N; ++k) x[k] = columns ? t[k][block] : t[block][k];
    rotate_exactly<dtype>(x, y);
    for (int k = 0; k < N; ++k) (columns ? t[k][block] : t[block][k]) = y[k];
  }
}

template <int64_t dtype> inline void rotate_columns(F *t) {
  F x[N];
  for (int k = 0; k < N; ++k) x[k] = t[k] * splat(0.25f);
#pragma GCC unroll 16
  for (int j = 0; j < N; ++j) {
    F sum{};
#pragma GCC unroll 16
    for (int step = 0; step < N; ++step) {
      const int k = dtype == BF16 ? step ^ 1 : step;
      sum = negative(k, j) ? sum - x[k] : sum + x[k];
    }
    t[j] = sum;
  }
}

// Rows become columns: in each of four steps, neighbours at twice the distance exchange halves.
inline void transpose(F *t) {
  I x[N], y[N];
  std::memcpy(x, t, sizeof x);
  for (int i = 0; i < N; i += 2) {
    y[i] = SHUFFLE(x[i], x[i + 1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30);
    y[i + 1] = SHUFFLE(x[i], x[i + 1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
  }
  for (int i = 0; i < N; ++i) {
    if (i & 2) continue;
    x[i] = SHUFFLE(y[i], y[i + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
    x[i + 2] = SHUFFLE(y[i], y[i + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  }
  for (int i = 0; i < N; ++i) {
    if (i & 4) continue;
    y[i] = SHUFFLE(x[i], x[i + 4], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27);
    y[i + 4] = SHUFFLE(x[i], x[i + 4], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
  }
  for (int i = 0; i < 8; ++i) {
    x[i] = SHUFFLE(y[i], y[i + 8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
    x[i + 8] = SHUFFLE(y[i], y[i + 8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  }
  std::memcpy(t, x, sizeof x);
}

// The same sums by butterflies, a quarter of the additions: for numbers whose sums are exact in any order.
inline void rotate_columns_fast(F *t) {
#pragma GCC unroll 16
  for (int k = 0; k < N; ++k) t[k] = t[k] * splat(SIGNS[k] < 0 ? -0.25f : 0.25f);
#pragma GCC unroll 4
  for (int distance = 1; distance < N; distance *= 2)
#pragma GCC unroll 16
    for (int k = 0; k < N; ++k)
      if (!(k & distance)) {
        const F sum = t[k] + t[k + distance];
        t[k + distance] = t[k] - t[k + distance];
        t[k] = sum;
      }
}

template <int64_t dtype, bool columns> inline void rotate(F *t) {
  const Range range = range_of(t);
  if (__builtin_expect(has_tiny<dtype>(range), 0)) {
    rotate_tiny<dtype, columns>(t);
  } else {
    if (!columns) transpose(t);
    if (dtype == BF16 && sums_are_exact(columns ? range : range_of(t)))
      rotate_columns_fast(t);
    else
      rotate_columns<dtype>(t);
    if (!columns) transpose(t);
  }
  for (int i = 0; i < N; ++i) t[i] = bits<F>(narrow_bf16_bits(t[i]));
}

// ------------------------------------------------------------------------------------------------ tiles

// Sixteen blocks at equal distances: consecutive ones of a row, or those of 16 rows that stand above each other.
struct Tile {
  const char *in;                // position 0 of the first block's row, `offset` included
  int64_t in_step, in_k;         // bytes between blocks, and between positions
  int64_t out, out_step;         // elements from the output's start to the first block, and between blocks
  int64_t number, number_step;   // of the blocks in the logical tensor
  int64_t start, start_step;     // first position of each block in its row
  int valid;                     // blocks that exist; the others hold zeros
};

template <int64_t dtype> inline constexpr int64_t width() { return dtype == F32 ? 4 : 2; }

// Positions [from, to) of a row exist in the input and are asked for.
inline int64_t from(const Arguments &a) { return a.offset < 0 ? -a.offset : 0; }
inline int64_t to(const Arguments &a) { return a.in_length - a.offset < a.length ? a.in_length - a.offset : a.length; }
inline bool inside(const Arguments &a, const Tile &tile) {
  return tile.valid == N && tile.start >= from(a) && tile.start + (N - 1) * tile.start_step + N <= to(a);
}

template <int64_t dtype> inline void read_rows(const Arguments &a, const Tile &tile, F *t) {
  if (a.in_k == 1 && inside(a, tile)) {
    const char *in = tile.in + tile.start * width<dtype>();
    for (int block = 0; block < N; ++block, in += tile.in_step) t[block] = load_as<dtype>(in);
    return;
  }
  for (int block = 0; block < N; ++block) {
    F x{};
    const int64_t start = tile.start + block * tile.start_step;
    const char *in = tile.in + block * tile.in_step + tile.start * tile.in_k;
    if (block < tile.valid)
      for (int k = 0; k < N; ++k)
        if (start + k >= from(a) && start + k < to(a)) x[k] = load_one(in + k * tile.in_k, dtype);
    t[block] = x;
  }
}

template <int64_t dtype> inline void read_columns(const Arguments &a, const Tile &tile, F *t) {
  const char *in = tile.in + tile.start * tile.in_k;
  if (inside(a, tile)) {
    for (int k = 0; k < N; ++k, in += tile.in_k) t[k] = load_as<dtype>(in);
    return;
  }
  for (int k = 0; k < N; ++k, in += tile.in_k) {
    F x{};
    if (tile.start + k >= from(a) && tile.start + k < to(a)) {
      if (tile.valid == N) {
        x = load_as<dtype>(in);
      } else {
        for (int lane = 0; lane < tile.valid; ++lane) x[lane] = load_one(in + lane * width<dtype>(), dtype);
      }
    }
    t[k] = x;
  }
}

// The largest lane of each of 16 vectors, as one vector: halves are merged pairwise, so it takes 15 steps, not 64.
inline I merge1(I a, I b) {
  return larger(SHUFFLE(a, b, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30),
                SHUFFLE(a, b, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31));
}
inline I merge2(I a, I b) {
  return larger(SHUFFLE(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29),
                SHUFFLE(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31));
}
inline I merge4(I a, I b) {
  return larger(SHUFFLE(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27),
                SHUFFLE(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31));
}
inline I merge8(I a, I b) {
  return larger(SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23),
                SHUFFLE(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31));
}
inline I row_maxima(const F *t) {
  I m[N];
  for (int i = 0; i < N; ++i) m[i] = bits<I>(t[i]) & MAGNITUDE;
  for (int i = 0; i < 8; ++i) m[i] = merge1(m[2 * i], m[2 * i + 1]);
  for (int i = 0; i < 4; ++i) m[i] = merge2(m[2 * i], m[2 * i + 1]);
  for (int i = 0; i < 2; ++i) m[i] = merge4(m[2 * i], m[2 * i + 1]);
  return merge8(m[0], m[1]);
}
inline I column_maxima(const F *t) {
  I m = bits<I>(t[0]) & MAGNITUDE;
  for (int k = 1; k < N; ++k) m = larger(m, bits<I>(t[k]) & MAGNITUDE);
  return m;
}
struct Scale {  // what follows from the tensor's maximum
  float amax, encode, decode;
};
Scale tensor_scale(float amax) {
  float scale = 2688.0f / amax;
  if (scale > FLOAT_MAX) scale = FLOAT_MAX;
  if (amax == 0.0f || scale == 0.0f) scale = 1.0f;
  return {amax, scale * (1.0f / 6.0f), 1.0f / scale};
}

// Values that are codes times scales are exact in BF16: their lower half is zero, and nothing is to be rounded.
template <int64_t dtype, bool exact> inline H narrow(F x) {
  const U u = dtype == BF16 ? bits<U>(exact ? bits<I>(x) : narrow_bf16_bits(x)) >> 16 : bits<U>(narrow_f16_bits(x));
  return __builtin_convertvector(bits<I>(u), H);
}
template <int64_t dtype, bool exact> inline void store(char *out, F x) {
  if (dtype == F32) {
    std::memcpy(out, &x, sizeof x);
  } else {
    const H half = narrow<dtype, exact>(x);
    std::memcpy(out, &half, sizeof half);
  }
}
// Some lanes of a vector, any distance apart.
template <int64_t dtype> inline void scatter(char *out, int64_t step, F x, int count) {
  const H half = dtype == F32 ? H{} : narrow<dtype, false>(x);
  for (int lane = 0; lane < count; ++lane, out += step) {
    const float number = x[lane];
    const int16_t small = half[lane];
    std::memcpy(out, dtype == F32 ? (const void *)&number : (const void *)&small, width<dtype>());
  }
}

template <int64_t dtype, bool exact, bool columns> inline void write(const Arguments &a, const Tile &tile, const F *t) {
  const int64_t size = width<dtype>(), step = tile.out_step * size, k_step = a.out_k * size;
  char *out = (char *)a.out + (tile.out + tile.start * a.out_k) * size;
  const int64_t end = tile.start + (N - 1) * tile.start_step + N;
  if (columns) {
    const int count = a.out_length - tile.start < N ? (int)(a.out_length - tile.start) : N;
    if (step == size && tile.valid == N)
      for (int k = 0; k < count; ++k, out += k_step) store<dtype, exact>(out, t[k]);
    else
      for (int k = 0; k < count; ++k, out += k_step) scatter<dtype>(out, step, t[k], tile.valid);
  } else if (a.out_k == 1 && tile.valid == N && end <= a.out_length) {
    for (int block = 0; block < N; ++block, out += step) store<dtype, exact>(out, t[block]);
  } else {
    for (int block = 0; block < tile.valid; ++block, out += step) {
      const int64_t left = a.out_length - tile.start - block * tile.start_step;
      scatter<dtype>(out, k_step, t[block], left < N ? (int)left : N);
    }
  }
}

// Two neighbouring positions of a block side by side, as one 32-bit number.
template <bool columns> inline void write_pairs(const Arguments &a, const Tile &tile, const F *t) {
  U words[N / 2];
  if (columns) {
    for (int k = 0; k < N; k += 2)
      words[k / 2] = bits<U>(narrow_bf16_bits(t[k + 1])) | (bits<U>(narrow_bf16_bits(t[k])) >> 16);
  } else {
    for (int block = 0; block < N; ++block) {
      uint32_t pairs[N / 2];
      const H half = narrow<BF16, false>(t[block]);
      std::memcpy(pairs, &half, sizeof half);
      for (int k = 0; k < N / 2; ++k) words[k][block] = pairs[k];
    }
  }
  uint32_t *out = (uint32_t *)a.out + tile.out + tile.start / 2 * a.out_k;
  for (int k = 0; k < N / 2; ++k, out += a.out_k) {
    if (tile.out_step == 1 && tile.valid == N)
      std::memcpy(out, &words[k], sizeof words[k]);
    else
      for (int lane = 0; lane < tile.valid; ++lane) out[lane * tile.out_step] = words[k][lane];
  }
}

// The columns that `write_pairs` has written.
inline void read_pairs(const Arguments &a, const Tile &tile, F *t) {
  const uint32_t *in = (const uint32_t *)a.out + tile.out + tile.start / 2 * a.out_k;
  for (int k = 0; k < N; k += 2, in += a.out_k) {
    U words{};
    if (tile.valid == N)
      std::memcpy(&words, in, sizeof words);
    else
      for (int lane = 0; lane < tile.valid; ++lane) words[lane] = in[lane];
    t[k] = bits<F>(words << 16);
    t[k + 1] = bits<F>(words & 0xffff0000u);
  }
}

// The whole vectors that `write` has written as FP32 (a rotated length is one of whole blocks).
template <bool columns> inline void read_floats(const Arguments &a, const Tile &tile, F *t) {
  const char *in = (const char *)a.out + (tile.out + tile.start * a.out_k) * 4;
  const int64_t step = (columns ? a.out_k : tile.out_step) * 4;
  const int vectors = columns ? N : tile.valid, lanes = columns ? tile.valid : N;
  for (int i = 0; i < N; ++i, in += step) {
    F x{};
    if (i < vectors) std::memcpy(&x, in, lanes == N ? sizeof x : 4 * lanes);
    t[i] = x;
  }
}

// ------------------------------------------------------------------------------------------------ passes

template <bool columns> inline void quantize_tile(const Arguments &a, const Scale &scale, const Tile &tile, F *t) {
  I maxima = columns ? column_maxima(t) : row_maxima(t);
  if (a.flags & TWO_D) maxima = splat(largest_lane(maxima));
  const F scales = round_e4m3(at_most(bits<F>(maxima) * splat(scale.encode), 448.0f));
  const F encode = at_most(splat(1.0f) / (scales * splat(scale.decode)), FLOAT_MAX);
  const F factor = a.flags & DECODED ? (scales * splat(scale.amax)) * splat(1.0f / 2688.0f) : scales;
  if (a.scales)
    for (int block = 0; block < tile.valid; ++block) a.scales[tile.number + block * tile.number_step] = scales[block];
  float own_encode[N], own_factor[N];
  if (!columns) {
    std::memcpy(own_encode, &encode, sizeof encode);
    std::memcpy(own_factor, &factor, sizeof factor);
    asm("" : "+m"(own_encode), "+m"(own_factor));  // read each from memory rather than shift it out of a register
  }
  if (!(a.flags & STOCHASTIC)) {
    for (int i = 0; i < N; ++i)
      t[i] = round_e2m1(t[i] * (columns ? encode : splat(own_encode[i]))) * (columns ? factor : splat(own_factor[i]));
    return;
  }
  const Words words = philox(tile.number, tile.number_step, a.key);
  if (columns) {
    uint64_t low[N], high[N];
    std::memcpy(low, words.low, sizeof low);
    std::memcpy(high, words.high, sizeof high);
    U lanes[4];
    for (int half = 0; half < 2; ++half) {
      for (int lane = 0; lane < N / 2; ++lane) {
        lanes[0][8 * half + lane] = (uint32_t)low[8 * half + lane];
        lanes[1][8 * half + lane] = (uint32_t)(low[8 * half + lane] >> 32);
        lanes[2][8 * half + lane] = (uint32_t)high[8 * half + lane];
        lanes[3][8 * half + lane] = (uint32_t)(high[8 * half + lane] >> 32);
      }
    }
    for (int k = 0; k < N; ++k) {
      const F byte = __builtin_convertvector(bits<I>((lanes[k / 4] >> (8 * (k % 4))) & 0xff), F);
      t[k] = round_e2m1_stochastic(t[k] * encode, byte) * factor;
    }
  } else {
    uint64_t bytes[N][2];
    for (int b = 0; b < N; ++b) bytes[b][0] = words.low[b / 8][b % 8], bytes[b][1] = words.high[b / 8][b % 8];
    for (int b = 0; b < N; ++b) {
      const F byte = __builtin_convertvector(__builtin_convertvector(load<B>(bytes[b]), I), F);
      t[b] = round_e2m1_stochastic(t[b] * splat(own_encode[b]), byte) * splat(own_factor[b]);
    }
  }
}

template <bool columns> inline void write_tile(const Arguments &a, const Tile &tile, const F *t) {
  if (a.flags & PAIRS)
    write_pairs<columns>(a, tile, t);
  else if (a.out_dtype == F32)
    write<F32, true, columns>(a, tile, t);
  else if (a.out_dtype == F16)
    write<F16, false, columns>(a, tile, t);
  else if (a.flags & DECODED)
    write<BF16, false, columns>(a, tile, t);
  else
    write<BF16, true, columns>(a, tile, t);
}

// How the tiles of the tensor are counted.
struct Units {
  int64_t blocks, inner, groups, outer, count;
  bool panels;  // a tile is one block of 16 rows, else 16 blocks of a row
};
Units units(const Arguments &a) {
  Units u;
  u.blocks = (a.length + N - 1) / N;
  u.inner = a.size[a.axes - 1];
  u.outer = 1;
  for (int64_t axis = 0; axis + 1 < a.axes; ++axis) u.outer *= a.size[axis];
  const int64_t row_tiles = (u.blocks + N - 1) / N, panel_tiles = (u.inner + N - 1) / N;
  u.panels = (a.flags & (COLUMNS | TWO_D | PAIRS)) || panel_tiles * u.blocks < row_tiles * u.inner;
  u.groups = u.panels ? panel_tiles : row_tiles;
  u.count = u.outer * u.groups * (u.panels ? u.blocks : u.inner);
  return u;
}

// Whether the first pass leaves the rotated numbers in the output, where the second takes them up again: where vectors
// lie along memory there, and the output holds BF16 numbers as they are.
inline bool keeps_rotated(const Arguments &a) {
  if (!(a.flags & ROTATE) || a.flags & GIVEN_AMAX || !a.out) return false;
  if (a.flags & PAIRS) return a.flags & COLUMNS && a.out_stride[a.axes - 1] == 1;
  return a.out_dtype == F32 && (a.flags & COLUMNS ? a.out_stride[a.axes - 1] : a.out_k) == 1;
}

// Work on a share of the tiles; `scale` null: look for the largest magnitude only.
template <int64_t dtype, bool columns>
int32_t pass(const Arguments &a, const Units &u, const Scale *scale, int64_t begin, int64_t end) {
  const int64_t last = a.axes - 1;
  const bool kept = keeps_rotated(a);
  I largest = splat(0);
  F t[N];
  // Columns walk along memory: the group of columns is the innermost index. With rows the block is.
  const int64_t fast_end = columns || !u.panels ? u.groups : u.blocks;
  const int64_t slow_end = !u.panels ? u.inner : columns ? u.blocks : u.groups;
  int64_t fast = begin % fast_end, slow = begin / fast_end % slow_end, rest = begin / (fast_end * slow_end);
  int64_t base_in = 0, base_out = 0, base_number = 0;
  bool moved = true;  // to another place on the outer axes
  for (int64_t unit = begin; unit < end; ++unit) {
    if (moved) {
      moved = false;
      base_in = base_out = base_number = 0;
      int64_t left = rest;
      for (int64_t axis = last - 1; axis >= 0; --axis) {
        const int64_t index = axis ? left % a.size[axis] : left;
        left /= a.size[axis];
        base_in += index * a.in_stride[axis];
        base_out += index * a.out_stride[axis];
        base_number += index * a.block_stride[axis];
      }
    }
    const int64_t block = !u.panels ? fast * N : columns ? slow : fast;
    const int64_t at = !u.panels ? slow : N * (columns ? fast : slow);
    const int64_t left = u.panels ? u.inner - at : u.blocks - block;
    Tile tile;
    tile.in_k = a.in_k * width<dtype>();
    tile.in = (const char *)a.in + (base_in + at * a.in_stride[last]) * width<dtype>() + a.offset * tile.in_k;
    tile.in_step = u.panels ? a.in_stride[last] * width<dtype>() : N * tile.in_k;
    tile.out = base_out + at * a.out_stride[last];
    tile.out_step = u.panels ? a.out_stride[last] : N * a.out_k;
    tile.number = base_number + at * a.block_stride[last] + block;
    tile.number_step = u.panels ? a.block_stride[last] : 1;
    tile.start = block * N;
    tile.start_step = u.panels ? 0 : N;
    tile.valid = left < N ? (int)left : N;
    if (kept && scale) {
      if (a.flags & PAIRS)
        read_pairs(a, tile, t);
      else
        read_floats<columns>(a, tile, t);
    } else {
      if (columns)
        read_columns<dtype>(a, tile, t);
      else
        read_rows<dtype>(a, tile, t);
      if (a.flags & ROTATE) rotate<dtype, columns>(t);
    }
    if (scale) {
      quantize_tile<columns>(a, *scale, tile, t);
      write_tile<columns>(a, tile, t);
    } else {
      largest = larger(largest, column_maxima(t));
      if (kept) write_tile<columns>(a, tile, t);
    }
    if (++fast == fast_end) {
      fast = 0;
      if (++slow == slow_end) slow = 0, ++rest, moved = true;
    }
  }
  return largest_lane(largest);
}

template <int64_t dtype, bool columns> int32_t parallel(const Arguments &a, const Units &u, const Scale *scale) {
  int32_t largest = 0;
  const int64_t parts = a.threads < u.count ? a.threads : u.count;
  if (parts <= 1) return pass<dtype, columns>(a, u, scale, 0, u.count);
#pragma omp parallel for schedule(static, 1) num_threads(parts) reduction(max : largest)
  for (int64_t part = 0; part < parts; ++part) {
    const int32_t own = pass<dtype, columns>(a, u, scale, u.count * part / parts, u.count * (part + 1) / parts);
    largest = own > largest ? own : largest;
  }
  return largest;
}

template <int64_t dtype, bool columns> void run(Arguments a) {
  // Rows of whole blocks that follow each other without a gap are one long row, of which whole tiles can be cut.
  if (!columns && !(a.flags & (TWO_D | PAIRS)) && a.offset == 0 && a.in_length == a.length && a.length % N == 0) {
    while (a.axes > 0) {
      const int64_t last = a.axes - 1;
      if (a.in_stride[last] != a.length * a.in_k || a.out_stride[last] != a.length * a.out_k) break;
      if (a.block_stride[last] != a.length / N) break;
      a.in_length = a.out_length = a.length *= a.size[last];
      --a.axes;
    }
    if (a.axes == 0) a.axes = a.size[0] = 1;
  }
  const Units u = units(a);
  if (!(a.flags & GIVEN_AMAX)) *a.amax = bits<float>(parallel<dtype, columns>(a, u, nullptr));
  if (!a.out) return;
  const Scale scale = tensor_scale(*a.amax);
  parallel<dtype, columns>(a, u, &scale);
}

}  // namespace

// Quantize `in` into `out`. Returns 0, or 1 where the arguments are none that this source knows.
extern "C" int monai_fp4_quantize(const Arguments *a) {
  if (a->axes < 1 || a->axes > MAX_AXES) return 1;
  const bool columns = a->flags & COLUMNS;
  switch (a->in_dtype) {
    case F32: columns ? run<F32, true>(*a) : run<F32, false>(*a); return 0;
    case BF16: columns ? run<BF16, true>(*a) : run<BF16, false>(*a); return 0;
    case F16: columns ? run<F16, true>(*a) : run<F16, false>(*a); return 0;
  }
  return 1;
}

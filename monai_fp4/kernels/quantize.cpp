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

namespace {

constexpr int N = 16;  // numbers in a block, blocks in a tile, lanes in a vector
constexpr int MAX_AXES = 6;

typedef float F __attribute__((vector_size(4 * N)));
typedef int32_t I __attribute__((vector_size(4 * N)));
typedef uint32_t U __attribute__((vector_size(4 * N)));
typedef int16_t H __attribute__((vector_size(2 * N)));
typedef uint8_t B __attribute__((vector_size(N)));
typedef uint64_t L __attribute__((vector_size(8 * N)));

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
inline F select(I mask, F yes, F no) { return bits<F>((bits<I>(yes) & mask) | (bits<I>(no) & ~mask)); }
inline I larger(I a, I b) { return a > b ? a : b; }
inline F at_most(F x, float limit) { return select(x > splat(limit), splat(limit), x); }  // NaN stays

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
  value = select((wide & 0x7c00) == 0x7c00, bits<F>(magnitude | EXPONENT), value);
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
inline F round_e2m1(F x) {
  const F clamped = select(x > splat(6.0f), splat(6.0f), select(x < splat(-6.0f), splat(-6.0f), x));
  return round_small(clamped, 1, 0x3f800000);
}
inline F round_e2m1_stochastic(F x, F byte) {
  F m = at_most(bits<F>(bits<I>(x) & MAGNITUDE), 6.0f);
  m = m + bits<F>(power_bits(m, 0x3f800000)) * (byte * splat(0.5f / 256));
  // Down to the grid: above 1, that is to cut the mantissa after its first bit.
  const F low = select(m < splat(0.5f), splat(0.0f), splat(0.5f));
  m = select(m < splat(1.0f), low, bits<F>(bits<I>(m) & (int32_t)0xffc00000));
  return bits<F>(bits<I>(m) | (bits<I>(x) & ~MAGNITUDE)) + splat(0.0f);  // the sum turns -0 into +0
}

// ------------------------------------------------------------------------------------------------ random bits

inline void multiply(U a, uint32_t factor, U &high, U &low) {
  const L product = __builtin_convertvector(a, L) * (uint64_t)factor;
  low = __builtin_convertvector(product, U);
  high = __builtin_convertvector(product >> 32, U);
}

// Philox4x32-10 of 16 counters.
inline void philox(const int64_t *counters, uint64_t key, U *c) {
  for (int lane = 0; lane < N; ++lane) {
    c[0][lane] = (uint32_t)counters[lane];
    c[1][lane] = (uint32_t)((uint64_t)counters[lane] >> 32);
  }
  c[2] = c[3] = U{};
  uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
  for (int round = 0; round < 10; ++round) {
    U high0, low0, high1, low1;
    multiply(c[0], 0xD2511F53u, high0, low0);
    multiply(c[2], 0xCD9E8D57u, high1, low1);
    c[0] = high1 ^ c[1] ^ k0;
    c[1] = low1;
    c[2] = high0 ^ c[3] ^ k1;
    c[3] = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

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

// Whether a quarter of any number may be inexact, or (BF16) any sum may be subnormal.
template <int64_t dtype> inline bool has_tiny(const F *t) {
  const int32_t limit = dtype == BF16 ? 0x0d800000 : 0x01800000;  // 2^-100, 2^-124
  I smallest = splat(MAGNITUDE);
  for (int i = 0; i < N; ++i) {
    // Zero becomes the largest unsigned number, and unsigned order is signed order with the top bit flipped.
    const I less = ((bits<I>(t[i]) & MAGNITUDE) - 1) & MAGNITUDE;
    smallest = less < smallest ? less : smallest;
  }
  int32_t least = MAGNITUDE;
  for (int lane = 0; lane < N; ++lane) least = smallest[lane] < least ? smallest[lane] : least;
  return least < limit - 1;
}

template <int64_t dtype, bool columns> __attribute__((noinline)) void rotate_tiny(F *t) {
  for (int block = 0; block < N; ++block) {
    float x[N], y[N];
    for (int k = 0; k < N; ++k) x[k] = columns ? t[k][block] : t[block][k];
    rotate_exactly<dtype>(x, y);
    for (int k = 0; k < N; ++k) (columns ? t[k][block] : t[block][k]) = y[k];
  }
}

template <int64_t dtype> inline void rotate_rows(F *t) {
  for (int block = 0; block < N; ++block) {
    F sum{};
#pragma GCC unroll 16
    for (int step = 0; step < N; ++step) {
      const int k = dtype == BF16 ? step ^ 1 : step;
      sum = sum + load<F>(MATRIX.row[k]) * t[block][k];
    }
    t[block] = sum;
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

template <int64_t dtype, bool columns> inline void rotate(F *t) {
  if (__builtin_expect(has_tiny<dtype>(t), 0)) {
    rotate_tiny<dtype, columns>(t);
  } else if (columns) {
    rotate_columns<dtype>(t);
  } else {
    rotate_rows<dtype>(t);
  }
  for (int i = 0; i < N; ++i) t[i] = bits<F>(narrow_bf16_bits(t[i]));
}

// ------------------------------------------------------------------------------------------------ tiles

struct Tile {
  int valid;          // blocks that exist; the others hold zeros
  const char *in[N];  // element 0 of the row of each block (rows), or of the first (columns)
  int64_t out[N];     // offset of the row's element 0
  int64_t number[N];  // of the block in the logical tensor
  int64_t start[N];   // first position of each block in its row
};

template <int64_t dtype> inline constexpr int64_t width() { return dtype == F32 ? 4 : 2; }

template <int64_t dtype> inline void read_rows(const Arguments &a, const Tile &tile, F *t) {
  for (int block = 0; block < N; ++block) {
    if (block >= tile.valid) {
      t[block] = F{};
      continue;
    }
    const int64_t start = tile.start[block], at = start + a.offset;
    const char *in = tile.in[block] + at * a.in_k * width<dtype>();
    if (a.in_k == 1 && at >= 0 && at + N <= a.in_length && start + N <= a.length) {
      t[block] = load_as<dtype>(in);
    } else {
      F x{};
      for (int k = 0; k < N; ++k)
        if (at + k >= 0 && at + k < a.in_length && start + k < a.length)
          x[k] = load_one(in + k * a.in_k * width<dtype>(), dtype);
      t[block] = x;
    }
  }
}

template <int64_t dtype> inline void read_columns(const Arguments &a, const Tile &tile, F *t) {
  const int64_t start = tile.start[0], at = start + a.offset, step = a.in_k * width<dtype>();
  const char *in = tile.in[0] + at * step;
  for (int k = 0; k < N; ++k, in += step) {
    if (at + k < 0 || at + k >= a.in_length || start + k >= a.length) {
      t[k] = F{};
    } else if (tile.valid == N) {
      t[k] = load_as<dtype>(in);
    } else {
      F x{};
      for (int lane = 0; lane < tile.valid; ++lane) x[lane] = load_one(in + lane * width<dtype>(), dtype);
      t[k] = x;
    }
  }
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SHUFFLE __builtin_shufflevector
#endif
#endif
#ifndef SHUFFLE
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, I{__VA_ARGS__})
#endif

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
inline int32_t largest_lane(I m) {
  int32_t x = 0;
  for (int lane = 0; lane < N; ++lane) x = m[lane] > x ? m[lane] : x;
  return x;
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

inline void write_lane(char *out, int64_t dtype, float value) {
  if (dtype == F32) {
    std::memcpy(out, &value, 4);
  } else {
    const I u = dtype == BF16 ? (narrow_bf16_bits(splat(value)) >> 16) : narrow_f16_bits(splat(value));
    const int16_t half = (int16_t)u[0];
    std::memcpy(out, &half, 2);
  }
}
inline void write_lanes(char *out, int64_t dtype, F x, int count) {
  if (dtype == F32) {
    std::memcpy(out, &x, count == N ? 4 * N : 4 * count);
    return;
  }
  const I u = dtype == BF16 ? (I)(bits<U>(narrow_bf16_bits(x)) >> 16) : narrow_f16_bits(x);
  const H half = __builtin_convertvector(u, H);
  std::memcpy(out, &half, count == N ? 2 * N : 2 * count);
}

template <bool columns> inline void write(const Arguments &a, const Tile &tile, const F *t) {
  char *out = (char *)a.out;
  const int64_t size = a.out_dtype == F32 ? 4 : 2, inner = a.out_stride[a.axes - 1];
  if (a.flags & PAIRS) {
    uint32_t *words = (uint32_t *)a.out;
    if (columns) {
      for (int k = 0; k < N; k += 2) {
        const U word = bits<U>(narrow_bf16_bits(t[k + 1])) | (bits<U>(narrow_bf16_bits(t[k])) >> 16);
        uint32_t *row = words + tile.out[0] + (tile.start[0] + k) / 2 * a.out_k;
        if (inner == 1)
          std::memcpy(row, &word, tile.valid == N ? 4 * N : 4 * tile.valid);
        else
          for (int lane = 0; lane < tile.valid; ++lane) row[lane * inner] = word[lane];
      }
    } else {
      for (int block = 0; block < tile.valid; ++block) {
        const I u = narrow_bf16_bits(t[block]);
        uint32_t *row = words + tile.out[block] + tile.start[block] / 2 * a.out_k;
        for (int k = 0; k < N; k += 2) row[k / 2 * a.out_k] = (uint32_t)u[k + 1] | ((uint32_t)u[k] >> 16);
      }
    }
  } else if (columns) {
    const int64_t start = tile.start[0];
    const int count = a.out_length - start < N ? (int)(a.out_length - start) : N;
    for (int k = 0; k < count; ++k) {
      char *row = out + (tile.out[0] + (start + k) * a.out_k) * size;
      if (inner == 1)
        write_lanes(row, a.out_dtype, t[k], tile.valid);
      else
        for (int lane = 0; lane < tile.valid; ++lane) write_lane(row + lane * inner * size, a.out_dtype, t[k][lane]);
    }
  } else {
    for (int block = 0; block < tile.valid; ++block) {
      const int64_t start = tile.start[block];
      const int count = a.out_length - start < N ? (int)(a.out_length - start) : N;
      char *row = out + (tile.out[block] + start * a.out_k) * size;
      if (a.out_k == 1)
        write_lanes(row, a.out_dtype, t[block], count);
      else
        for (int k = 0; k < count; ++k) write_lane(row + k * a.out_k * size, a.out_dtype, t[block][k]);
    }
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
    for (int block = 0; block < tile.valid; ++block) a.scales[tile.number[block]] = scales[block];
  if (!(a.flags & STOCHASTIC)) {
    if (columns)
      for (int k = 0; k < N; ++k) t[k] = round_e2m1(t[k] * encode) * factor;
    else
      for (int b = 0; b < N; ++b) t[b] = round_e2m1(t[b] * splat(encode[b])) * splat(factor[b]);
  } else {
    U words[4];
    philox(tile.number, a.key, words);
    if (columns) {
      for (int k = 0; k < N; ++k) {
        const F byte = __builtin_convertvector((I)((words[k / 4] >> (8 * (k % 4))) & 0xff), F);
        t[k] = round_e2m1_stochastic(t[k] * encode, byte) * factor;
      }
    } else {
      for (int b = 0; b < N; ++b) {
        const uint32_t own[4] = {words[0][b], words[1][b], words[2][b], words[3][b]};
        const I byte = __builtin_convertvector(load<B>(own), I);
        t[b] = round_e2m1_stochastic(t[b] * splat(encode[b]), __builtin_convertvector(byte, F)) * splat(factor[b]);
      }
    }
  }
  write<columns>(a, tile, t);
}

// Walk the tiles of a share of the tensor; `scale` null: look for the largest magnitude only.
template <int64_t dtype, bool columns> int32_t pass(const Arguments &a, const Scale *scale, int64_t begin, int64_t end) {
  const int64_t last = a.axes - 1, inner = a.size[last], blocks = (a.length + N - 1) / N;
  const bool panels = columns || (a.flags & TWO_D);  // a tile is 16 rows and one block of each
  const int64_t groups = panels ? (inner + N - 1) / N : 0;
  I largest = splat(0);
  Tile tile;
  F t[N];
  // A unit is a panel's block, or any 16 blocks in the order of rows.
  for (int64_t unit = begin; unit < end; ++unit) {
    int64_t row, block;
    if (panels) {
      // Columns walk along memory: the group of columns is the innermost index.
      const int64_t group = columns ? unit % groups : unit / blocks % groups;
      block = columns ? unit / groups % blocks : unit % blocks;
      row = unit / (groups * blocks) * inner + group * N;
      tile.valid = inner - group * N < N ? (int)(inner - group * N) : N;
    } else {
      row = unit * N / blocks;
      block = unit * N % blocks;
      int64_t rows = inner;
      for (int64_t axis = 0; axis < last; ++axis) rows *= a.size[axis];
      const int64_t left = rows * blocks - unit * N;
      tile.valid = left < N ? (int)left : N;
    }
    for (int i = 0; i < tile.valid; ++i) {
      if (i == 0 || (!panels && block == 0)) {
        int64_t rest = row, in = 0, out = 0, number = 0;
        for (int64_t axis = last; axis >= 0; --axis) {
          const int64_t at = axis ? rest % a.size[axis] : rest;
          rest /= a.size[axis];
          in += at * a.in_stride[axis];
          out += at * a.out_stride[axis];
          number += at * a.block_stride[axis];
        }
        tile.in[i] = (const char *)a.in + in * width<dtype>();
        tile.out[i] = out;
        tile.number[i] = number + block;
      } else {
        const int64_t step = panels ? 1 : 0;
        tile.in[i] = tile.in[i - 1] + step * a.in_stride[last] * width<dtype>();
        tile.out[i] = tile.out[i - 1] + step * a.out_stride[last];
        tile.number[i] = tile.number[i - 1] + (panels ? a.block_stride[last] : 1);
      }
      tile.start[i] = block * N;
      if (!panels && ++block == blocks) block = 0, ++row;
    }
    for (int i = tile.valid; i < N; ++i) tile.number[i] = 0;
    if (columns)
      read_columns<dtype>(a, tile, t);
    else
      read_rows<dtype>(a, tile, t);
    if (a.flags & ROTATE) rotate<dtype, columns>(t);
    if (scale)
      quantize_tile<columns>(a, *scale, tile, t);
    else
      largest = larger(largest, column_maxima(t));
  }
  return largest_lane(largest);
}

template <int64_t dtype, bool columns> int32_t parallel(const Arguments &a, const Scale *scale, int64_t units) {
  int32_t largest = 0;
  const int64_t parts = a.threads < units ? a.threads : units;
  if (parts <= 1) return pass<dtype, columns>(a, scale, 0, units);
#pragma omp parallel for schedule(static, 1) num_threads(parts) reduction(max : largest)
  for (int64_t part = 0; part < parts; ++part) {
    const int32_t own = pass<dtype, columns>(a, scale, units * part / parts, units * (part + 1) / parts);
    largest = own > largest ? own : largest;
  }
  return largest;
}

template <int64_t dtype, bool columns> void run(const Arguments &a) {
  const int64_t last = a.axes - 1, blocks = (a.length + N - 1) / N;
  int64_t outer = 1;
  for (int64_t axis = 0; axis < last; ++axis) outer *= a.size[axis];
  const bool panels = columns || (a.flags & TWO_D);
  const int64_t units = panels ? outer * ((a.size[last] + N - 1) / N) * blocks : (outer * a.size[last] * blocks + N - 1) / N;
  if (!(a.flags & GIVEN_AMAX)) *a.amax = bits<float>(parallel<dtype, columns>(a, nullptr, units));
  if (!a.out) return;
  const Scale scale = tensor_scale(*a.amax);
  parallel<dtype, columns>(a, &scale, units);
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

// Reading and writing tiles of 16 blocks of 16 numbers of a strided tensor.
//
// A tile is held as 16 vectors of 16 lanes, in one of two orders:
//
//   rows     a vector is one block (the quantized axis K lies along memory, or has any stride);
//   columns  a vector is position k of 16 neighbouring blocks (another axis lies along memory, as in a transposed
//            view).
//
// A whole tile is read and written a vector at a time. Of one at the edge of the tensor, or with strides that leave its
// vectors in pieces, the numbers are collected one by one in a tile of whole vectors, and spread from there.
#pragma once

#include "vectors.h"

constexpr int MAX_AXES = 6;

// What the caller passes, packed as 64-bit numbers in this order. Strides count elements. The last of `axes` batch axes
// is the inner one: of 16 neighbours along it a tile of columns, or a 16x16 block, is made.
struct Arguments {
  const void *in;
  void *out;
  float *amax;       // read with GIVEN_AMAX, else written
  float *scales;     // null: not wanted
  int64_t flags, in_dtype, out_dtype, threads;
  uint64_t key;
  int64_t length;       // of the axis K of `in`
  int64_t out_length;   // positions from `length` to here are written as zeros
  int64_t in_k, out_k;  // strides along K; with PAIRS, out_k is that of a pair
  int64_t axes;
  int64_t size[MAX_AXES], in_stride[MAX_AXES], out_stride[MAX_AXES];
  int64_t block_stride[MAX_AXES];  // of a block's number in the logical tensor: its scale's place and random counter
};

namespace {

enum Flag : int64_t { TWO_D = 1, ROTATE = 2, STOCHASTIC = 4, DECODED = 8, PAIRS = 16, GIVEN_AMAX = 32, COLUMNS = 64 };

// Sixteen blocks at equal distances: consecutive ones of a row, or those of 16 rows that stand above each other.
struct Tile {
  const char *in;                // position 0 of the first block's row
  int64_t in_step, in_k;         // bytes between blocks, and between positions
  int64_t out, out_step;         // elements from the output's start to the first block, and between blocks
  int64_t number, number_step;   // of the blocks in the logical tensor
  int64_t start, start_step;     // first position of each block in its row
  int valid;                     // blocks that exist; the others hold zeros
};

INLINE int64_t end_of(const Tile &tile) { return tile.start + (N - 1) * tile.start_step + N; }

// ------------------------------------------------------------------------------------------------ reading

// Sixteen vectors of numbers at equal distances in memory.
struct Source {
  const char *at;
  int64_t step, dtype;
};

NOINLINE void collect(const Arguments &a, const Tile &tile, bool columns, F *t) {
  for (int i = 0; i < N; ++i) t[i] = F{};
  for (int block = 0; block < tile.valid; ++block) {
    const int64_t left = a.length - tile.start - block * tile.start_step;
    const char *in = tile.in + block * tile.in_step + tile.start * tile.in_k;
    float *out = columns ? (float *)t + block : (float *)(t + block);
    for (int k = 0; k < N && k < left; ++k)
      out[columns ? N * k : k] = load_one(in + k * tile.in_k, a.in_dtype);
  }
}

// Where the tile's vectors lie: in the tensor, or in `spare`.
INLINE Source source(const Arguments &a, const Tile &tile, bool columns, F *spare) {
  const int64_t size = width(a.in_dtype), along = columns ? tile.in_step : tile.in_k;
  const bool whole = tile.valid == N && end_of(tile) <= a.length;
  if (__builtin_expect(whole && along == size, 1))
    return {tile.in + tile.start * tile.in_k, columns ? tile.in_k : tile.in_step, a.in_dtype};
  collect(a, tile, columns, spare);
  return {(const char *)spare, sizeof(F), F32};
}

// Vectors that are far apart lie on as many pages: more walks through memory than the processor foresees by itself.
// Into the second cache, since such addresses often share one set of the first.
INLINE void prefetch_next(const Source &source) {
  constexpr int64_t far = 1024, ahead = 256;  // bytes; measured on a Zen 4
  const char *at = source.at + ahead;
  if (source.step >= far) each<N>(EACH() { __builtin_prefetch(at, 0, 2), at += source.step; });
}

INLINE void read(const Source &source, F *t) {
  prefetch_next(source);
  const char *at = source.at;  // walks, since sixteen addresses at once would not fit into registers
  if (source.dtype == F32)
    each<N>(EACH(i) { t[i] = load<F>(at), at += source.step; });
  else if (source.dtype == BF16)
    each<N>(EACH(i) { t[i] = widen_bf16(load<H>(at)), at += source.step; });
  else
    each<N>(EACH(i) { t[i] = widen_f16(load<H>(at)), at += source.step; });
}

// ------------------------------------------------------------------------------------------------ writing

// Pairs: two neighbouring positions of a block side by side, as one 32-bit number, for each of 16 blocks.
// Exact: of codes times scales, which BF16 represents: their lower half is zero, and nothing is to be rounded.
enum Form : int64_t { AS_F32, AS_F16, AS_BF16, AS_BF16_EXACT, AS_PAIRS, AS_PAIRS_EXACT };

INLINE bool is_pairs(int64_t form) { return form >= AS_PAIRS; }
INLINE int64_t size_of(int64_t form) { return form == AS_F32 || is_pairs(form) ? 4 : 2; }  // in bytes

struct Target {
  char *at;
  int64_t step, form;
};

INLINE Form form_of(const Arguments &a) {
  const bool exact = !(a.flags & DECODED);
  if (a.flags & PAIRS) return exact ? AS_PAIRS_EXACT : AS_PAIRS;
  if (a.out_dtype == F32) return AS_F32;
  if (a.out_dtype == F16) return AS_F16;
  return exact ? AS_BF16_EXACT : AS_BF16;
}

// Where the tile's vectors go: into the tensor, or into `spare`, from where `spread` takes them on.
INLINE Target target(const Arguments &a, const Tile &tile, bool columns, F *spare) {
  const Form form = form_of(a);
  const bool pairs = is_pairs(form), whole = tile.valid == N && end_of(tile) <= a.out_length;
  const int64_t along = columns || pairs ? tile.out_step : a.out_k, size = size_of(form);
  if (__builtin_expect(whole && along == 1, 1))
    return {(char *)a.out + (tile.out + tile.start / (pairs ? 2 : 1) * a.out_k) * size,
            size * (columns || pairs ? a.out_k : tile.out_step), form};
  return {(char *)spare, sizeof(F), form};
}

INLINE U pair(I first, I second) { return bits<U>(second) | bits<U>(first) >> 16; }

// With pairs, vectors are positions, whatever the order of the tile.
INLINE void write(const Target &target, const F *t) {
  char *at = target.at;
  const auto put = [&](auto x) __attribute__((always_inline)) { store(at, x), at += target.step; };
  switch (target.form) {
    case AS_F32: each<N>(EACH(i) { put(t[i]); }); break;
    case AS_BF16: each<N>(EACH(i) { put(high_halves(narrow_bf16_bits(t[i]))); }); break;
    case AS_BF16_EXACT: each<N>(EACH(i) { put(high_halves(bits<I>(t[i]))); }); break;
    case AS_F16: each<N>(EACH(i) { put(low_halves(narrow_f16_bits(t[i]))); }); break;
    case AS_PAIRS:
      each<N / 2>(EACH(i) { put(pair(narrow_bf16_bits(t[2 * i]), narrow_bf16_bits(t[2 * i + 1]))); });
      break;
    case AS_PAIRS_EXACT: each<N / 2>(EACH(i) { put(pair(bits<I>(t[2 * i]), bits<I>(t[2 * i + 1]))); });
  }
}

NOINLINE void spread(const Arguments &a, const Tile &tile, bool columns, const F *spare) {
  const Form form = form_of(a);
  const int64_t size = size_of(form), per_number = is_pairs(form) ? 2 : 1;
  const bool upright = columns || is_pairs(form);  // vectors are positions
  char *out = (char *)a.out + (tile.out + tile.start / per_number * a.out_k) * size;
  for (int block = 0; block < tile.valid; ++block, out += tile.out_step * size) {
    const int64_t left = a.out_length - tile.start - block * tile.start_step;
    for (int64_t k = 0; k < N / per_number && k * per_number < left; ++k) {
      const char *vector = (const char *)(spare + (upright ? k : block));
      std::memcpy(out + k * a.out_k * size, vector + (upright ? block : k) * size, size);
    }
  }
}

}  // namespace

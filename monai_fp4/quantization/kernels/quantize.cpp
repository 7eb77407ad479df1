// NVFP4 quantization of a strided tensor on a CPU: the numbers of monai_fp4/quantization/formats/blocks.py, bit for bit.
//
// The first pass over the tensor looks for its largest magnitude, which scales everything, the second quantizes. The
// unit of work is a tile of 16 blocks of 16 numbers (tile.h), which stays in registers from its reading to its writing.
//
// Of a rotated tensor the largest magnitude is wanted after the rotation, which costs as much as all the rest. But no
// number of a rotated block is larger than a quarter of the sum of the block's magnitudes, so that the first pass
// rotates only the tiles in which that bound exceeds the largest number found so far: some of the first, and hardly any
// later.

#include "rotation.h"
#include "rounding.h"
#include "tile.h"
#include "vectors.h"

namespace {

// ------------------------------------------------------------------------------------------------ first pass

struct Found {
  int32_t largest = 0;   // bits of the largest magnitude
  bool ordinary = true;  // no number is extreme for the rotation
};

class Search {
 public:
  Search(const Arguments &a, bool columns) : a(a), columns(columns) {}

  INLINE void look(const Tile &tile) {
    F spare[N], t[N];
    read(source(a, tile, columns, spare), t);
    if (a.flags & ROTATE)
      look_rotated(t);
    else
      each<N>(EACH(i) { largest = larger(largest, magnitude_bits(t[i])); });
  }
  Found found() const { return {largest_lane(largest), !is_extreme(range, a.in_dtype)}; }

 private:
  INLINE void look_rotated(F *t) {
    each<N>(EACH(i) { extend(range, t[i]); });
    I sums;
    if (columns) {
      F sum[2]{};  // two, as each has to wait for its predecessor
      each<N>(EACH(k) { sum[k % 2] = sum[k % 2] + bits<F>(magnitude_bits(t[k])); });
      sums = bits<I>(sum[0] + sum[1]);
    } else {
      I m[N];
      each<N>(EACH(i) { m[i] = magnitude_bits(t[i]); });
      sums = join_rows(m, [](I a, I b) { return bits<I>(bits<F>(a) + bits<F>(b)); });
    }
    // Not `sums > limit`, which NaN would fail.
    if (__builtin_expect(any(~(bits<F>(sums) <= limit)), 0)) rotate_and_look(t);
  }
  NOINLINE void rotate_and_look(const F *tile) {
    F t[N];
    each<N>(EACH(i) { t[i] = tile[i]; });
    if (!columns) transpose(t);
    rotate(t, a.in_dtype, false);
    each<N>(EACH(i) { largest = larger(largest, magnitude_bits(t[i])); });
    largest = splat(largest_lane(largest));
    // Less by a margin for 16 roundings of either sum, each by 2^-24 of itself. Where roundings may be absolute, or
    // four times the number may be infinite, every tile is rotated.
    const float magnitude = bits<float>(largest[0]);
    limit = splat(magnitude > 0x1p-60f && magnitude < 0x1p100f ? 4.0f * magnitude * (1.0f - 0x1p-18f) : 0.0f);
  }

  const Arguments &a;
  const bool columns;
  I largest{};
  F limit{};
  Range range = empty_range();
};

// ------------------------------------------------------------------------------------------------ second pass

struct Scale {  // what follows from the tensor's maximum
  float amax, encode, decode;
  bool ordinary;
};
Scale tensor_scale(float amax, bool ordinary) {
  float scale = 2688.0f / amax;
  if (scale > FLOAT_MAX) scale = FLOAT_MAX;
  if (amax == 0.0f || scale == 0.0f) scale = 1.0f;
  return {amax, scale * (1.0f / 6.0f), 1.0f / scale, ordinary};
}

// Quantize 16 blocks that are held as columns or as rows.
template <bool columns> INLINE void quantize_tile(const Arguments &a, const Scale &scale, const Tile &tile, F *t) {
  I maxima;
  if (columns) {
    maxima = magnitude_bits(t[0]);
    each<N - 1>(EACH(i) { maxima = larger(maxima, magnitude_bits(t[i + 1])); });
  } else {
    I m[N];
    each<N>(EACH(i) { m[i] = magnitude_bits(t[i]); });
    maxima = join_rows(m, larger<int32_t>);
  }
  if (a.flags & TWO_D) maxima = splat(largest_lane(maxima));
  const F scales = round_e4m3(at_most(bits<F>(maxima) * splat(scale.encode), 448.0f));
  const F encode = at_most(splat(1.0f) / (scales * splat(scale.decode)), FLOAT_MAX);
  const F factor = a.flags & DECODED ? (scales * splat(scale.amax)) * splat(1.0f / 2688.0f) : scales;
  if (a.scales)
    for (int block = 0; block < tile.valid; ++block) a.scales[tile.number + block * tile.number_step] = scales[block];
  float own_encode[N], own_factor[N];
  if (!columns) {
    store(own_encode, encode);
    store(own_factor, factor);
    asm("" : "+m"(own_encode), "+m"(own_factor));  // read each from memory rather than shift it out of a register
  }
  if (!(a.flags & STOCHASTIC)) {
    each<N>(EACH(i) {
      const F number = round_e2m1(t[i] * (columns ? encode : splat(own_encode[i])));
      t[i] = number * (columns ? factor : splat(own_factor[i]));
    });
    return;
  }
  const Words words = philox(tile.number, tile.number_step, a.key);
  if (columns) {
    I word;
    each<N>(EACH(k) {
      if constexpr (k % 4 == 0) word = column_word<k / 4>(words);
      t[k] = round_e2m1_stochastic(t[k] * encode, column_byte(word, k)) * factor;
    });
  } else {
    Bytes bytes = row_bytes(words);
    asm("" : "+m"(bytes));
    each<N>(EACH(i) {
      t[i] = round_e2m1_stochastic(t[i] * splat(own_encode[i]), row_byte(bytes, i)) * splat(own_factor[i]);
    });
  }
}

template <bool columns> INLINE void process(const Arguments &a, const Scale &scale, const Tile &tile) {
  F in[N], out[N], t[N];
  const bool pairs = a.flags & PAIRS;
  read(source(a, tile, columns, in), t);
  if (a.flags & ROTATE) {
    if (!columns) transpose(t);
    rotate(t, a.in_dtype, scale.ordinary);
    quantize_tile<true>(a, scale, tile, t);
    if (!columns && !pairs) transpose(t);
  } else {
    quantize_tile<columns>(a, scale, tile, t);
    if (!columns && pairs) transpose(t);
  }
  const Target to = target(a, tile, columns, out);
  write(to, t);
  if (__builtin_expect(to.at == (char *)out, 0)) spread(a, tile, columns, out);
}

// ------------------------------------------------------------------------------------------------ the tensor's tiles

struct Units {  // how they are counted
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

// Call f with a share of the tiles.
template <bool columns, class Function>
INLINE void walk(const Arguments &a, const Units &u, int64_t begin, int64_t end, Function f) {
  const int64_t last = a.axes - 1, size = width(a.in_dtype);
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
    tile.in_k = a.in_k * size;
    tile.in = (const char *)a.in + (base_in + at * a.in_stride[last]) * size;
    tile.in_step = u.panels ? a.in_stride[last] * size : N * tile.in_k;
    tile.out = base_out + at * a.out_stride[last];
    tile.out_step = u.panels ? a.out_stride[last] : N * a.out_k;
    tile.number = base_number + at * a.block_stride[last] + block;
    tile.number_step = u.panels ? a.block_stride[last] : 1;
    tile.start = block * N;
    tile.start_step = u.panels ? 0 : N;
    tile.valid = left < N ? (int)left : N;
    f(tile);
    if (++fast == fast_end) {
      fast = 0;
      if (++slow == slow_end) slow = 0, ++rest, moved = true;
    }
  }
}

// Call f with the first and the last number of a tile for each thread.
template <class Function> void share(const Arguments &a, const Units &u, Function f) {
  const int64_t parts = a.threads < u.count ? a.threads : u.count;
  if (parts <= 1) return f(0, u.count);
#pragma omp parallel for schedule(static, 1) num_threads(parts)
  for (int64_t part = 0; part < parts; ++part) f(u.count * part / parts, u.count * (part + 1) / parts);
}

template <bool columns> NOINLINE Found search_share(const Arguments &a, const Units &u, int64_t begin, int64_t end) {
  Search search(a, columns);
  walk<columns>(a, u, begin, end, EACH(tile) { search.look(tile); });
  return search.found();
}

template <bool columns>
NOINLINE void quantize_share(const Arguments &a, const Units &u, const Scale &scale, int64_t begin, int64_t end) {
  walk<columns>(a, u, begin, end, EACH(tile) { process<columns>(a, scale, tile); });
}

template <bool columns> Found search(const Arguments &a) {
  const Units u = units(a);
  Found all;
  share(a, u, [&](int64_t begin, int64_t end) {
    const Found own = search_share<columns>(a, u, begin, end);
#pragma omp critical
    all = {own.largest > all.largest ? own.largest : all.largest, all.ordinary && own.ordinary};
  });
  return all;
}

// Rows of whole blocks that follow each other without a gap are one long row, of which whole tiles can be cut.
void merge_rows(Arguments &a, bool writes) {
  if (a.length % N != 0) return;
  while (a.axes > 0) {
    const int64_t last = a.axes - 1;
    if (a.in_stride[last] != a.length * a.in_k) break;
    if (writes && (a.out_stride[last] != a.length * a.out_k || a.block_stride[last] != a.length / N)) break;
    a.out_length = a.length *= a.size[last];
    --a.axes;
  }
  if (a.axes == 0) a.axes = a.size[0] = 1;
}

Found search_any(Arguments a) {
  const bool columns = a.flags & COLUMNS;
  if (a.flags & ROTATE) return columns ? search<true>(a) : search<false>(a);
  // Without a rotation blocks do not matter: walk along memory, whatever axis is called K.
  a.flags &= ~(TWO_D | PAIRS);
  if (columns) {
    const int64_t last = a.axes - 1;
    std::swap(a.length, a.size[last]);
    std::swap(a.in_k, a.in_stride[last]);
    a.flags &= ~COLUMNS;
  }
  merge_rows(a, false);
  return search<false>(a);
}

template <bool columns> void quantize(Arguments a, const Scale &scale) {
  if (!columns && !(a.flags & (TWO_D | PAIRS))) merge_rows(a, true);
  const Units u = units(a);
  share(a, u, [&](int64_t begin, int64_t end) { quantize_share<columns>(a, u, scale, begin, end); });
}

}  // namespace

// Quantize `in` into `out`. Returns 0, or 1 where the arguments are none that this source knows.
extern "C" int monai_fp4_quantize(const Arguments *a) {
  if (a->axes < 1 || a->axes > MAX_AXES || a->in_dtype < F32 || a->in_dtype > F16) return 1;
  Found found{0, false};
  if (!(a->flags & GIVEN_AMAX)) {
    found = search_any(*a);
    *a->amax = bits<float>(found.largest);
  }
  const Scale scale = tensor_scale(*a->amax, found.ordinary);
  if (a->flags & COLUMNS)
    quantize<true>(*a, scale);
  else
    quantize<false>(*a, scale);
  return 0;
}

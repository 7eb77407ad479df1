// Products of FP4 operands on the CPU: BF16 pairs multiplied by the AVX512_BF16 instruction, summed in FP32, scaled once.
//
// An operand holds values code * block_scale, which BF16 represents exactly, so the sum of their products in FP32, times
// alpha, is the FP4 product. PyTorch offers BF16 products on a CPU with BF16 results only: the sum would be rounded
// before alpha is applied. Hence this kernel; see docs/design-decisions.md.
//
// One function computes linear layers, convolutions, their transposes and all their gradients. It is a "batch-reduce"
// product (Georganas et al., arXiv 1906.06440): a list of segments, one for each kernel tap (or each image row), is
// summed up in registers,
//
//     C[row, n] = alpha * sum over segments s and pairs k:  A[a_offset[s] + row + k] * B[b_offset[s] + k, n]
//
// with strides left out, where an element of A and of B is a *pair* of BF16 numbers that are neighbours on the reduction axis, 32 bits. The
// order of the sum depends on the shapes only, never on the number of threads.
//
// All sizes and strides are counted in pairs, those of C in numbers.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define HAS_BF16 1
#include <immintrin.h>
#else
#define HAS_BF16 0
#endif

extern "C" int bf16_product_available() { return HAS_BF16; }

#if HAS_BF16

// Accumulators stay in registers only where every loop over them is unrolled.
#define UNROLL _Pragma("GCC unroll 8")

namespace {

constexpr int64_t kTileRows = 6;       // 6 x 4 accumulators of 16 numbers, 4 registers of B: 28 of the 32 there are
constexpr int64_t kTileColumns = 64;   // 4 vectors
constexpr int64_t kBlockRows = 96;     // rows that share a block of B while it is in the second-level cache
constexpr int64_t kBlockPairs = 512;   // pairs of the reduction axis in a block: 128 KiB of B
constexpr int64_t kSplitPairs = 2048;  // a split of the reduction axis is no shorter
constexpr int64_t kPackRows = 256;     // with at least as many rows, copying B into panels pays

struct Problem {
    const int64_t* rows;  // the rows of C are numbered (rows[0], rows[1], rows[2], rows[3])
    int64_t columns;
    const uint32_t* a;
    const int64_t* a_strides;  // for the four row numbers, then for a pair of the reduction axis
    const uint32_t* b;
    int64_t ldb;
    int64_t segments;
    const int64_t* a_offsets;
    const int64_t* b_offsets;
    int64_t pairs;  // of each segment
};

inline __m512bh as_bf16(__m512i x) { return (__m512bh)x; }

// acc[M][V] (+)= sum over segments [s0, s1) and their pairs [k0, k1)
template <int M, int V>
void micro(const Problem& p, const uint32_t* a, const uint32_t* b, bool packed, int64_t s0, int64_t s1, int64_t k0,
           int64_t k1, __mmask16 last, float* sums, bool first) {
    __m512 acc[M][V];
    UNROLL for (int m = 0; m < M; m++)
        UNROLL for (int v = 0; v < V; v++)
            acc[m][v] = first ? _mm512_setzero_ps() : _mm512_loadu_ps(sums + m * kTileColumns + v * 16);
    const int64_t ldb = packed ? kTileColumns : p.ldb;
    const int64_t ai = p.a_strides[3], ak = p.a_strides[4];
    for (int64_t s = s0; s < s1; s++) {
        const uint32_t* as = a + p.a_offsets[s] + k0 * ak;
        const uint32_t* bs = b + (packed ? s * p.pairs * kTileColumns : p.b_offsets[s]) + k0 * ldb;
        for (int64_t k = k0; k < k1; k++, as += ak, bs += ldb) {
            __m512i bv[V];
            UNROLL for (int v = 0; v + 1 < V; v++) bv[v] = _mm512_loadu_si512(bs + v * 16);
            bv[V - 1] = _mm512_maskz_loadu_epi32(last, bs + (V - 1) * 16);
            UNROLL for (int m = 0; m < M; m++) {
                const __m512i av = _mm512_set1_epi32((int)as[m * ai]);
                UNROLL for (int v = 0; v < V; v++) acc[m][v] = _mm512_dpbf16_ps(acc[m][v], as_bf16(av), as_bf16(bv[v]));
            }
        }
    }
    UNROLL for (int m = 0; m < M; m++)
        UNROLL for (int v = 0; v < V; v++) _mm512_storeu_ps(sums + m * kTileColumns + v * 16, acc[m][v]);
}

using Micro = void (*)(const Problem&, const uint32_t*, const uint32_t*, bool, int64_t, int64_t, int64_t, int64_t,
                       __mmask16, float*, bool);

template <int V>
constexpr Micro kMicros[7] = {nullptr, micro<1, V>, micro<2, V>, micro<3, V>, micro<4, V>, micro<5, V>, micro<6, V>};

Micro choose(int64_t rows, int64_t vectors) {
    switch (vectors) {
        case 1: return kMicros<1>[rows];
        case 2: return kMicros<2>[rows];
        case 3: return kMicros<3>[rows];
        default: return kMicros<4>[rows];
    }
}

// Sixteen FP32 numbers to BF16, ties to even. Not by the instruction for it, which flushes denormal numbers to zero.
inline __m256i round_to_bf16(__m512 x) {
    const __m512i u = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc0)));
}

// Multiply sums with alpha, cast and store them.
void store(const float* sums, int64_t columns, float alpha, void* c, int64_t at, bool bf16) {
    for (int64_t n = 0; n < columns; n += 16) {
        const __mmask16 mask = columns - n >= 16 ? 0xffff : (__mmask16)((1u << (columns - n)) - 1u);
        const __m512 scaled = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, sums + n), _mm512_set1_ps(alpha));
        if (bf16) {
            _mm256_mask_storeu_epi16((uint16_t*)c + at + n, mask, round_to_bf16(scaled));
        } else {
            _mm512_mask_storeu_ps((float*)c + at + n, mask, scaled);
        }
    }
}

// One aligned buffer a thread, kept between calls: fresh pages from the system would cost more than the work on them.
struct Scratch {
    void* data = nullptr;
    size_t size = 0;
    void* get(size_t bytes) {
        if (bytes > size) {
            std::free(data);
            size = (bytes + 4095) / 4096 * 4096;
            data = std::aligned_alloc(4096, size);
            if (!data) size = 0;
        }
        return data;
    }
    ~Scratch() { std::free(data); }
};

struct Tile {
    int64_t row, start, rows;  // number of the outer row, first inner row, how many
};

// Where an outer row starts, under the strides of its three numbers.
inline int64_t start_of(int64_t row, const int64_t* rows, const int64_t* strides) {
    const int64_t r2 = row % rows[2], r1 = row / rows[2] % rows[1], r0 = row / rows[2] / rows[1];
    return r0 * strides[0] + r1 * strides[1] + r2 * strides[2];
}

}  // namespace

extern "C" int bf16_product(const int64_t* row_shape, int64_t columns,  //
                            const uint32_t* a, const int64_t* a_strides, const uint32_t* b, int64_t ldb,  //
                            int64_t segments, const int64_t* a_offsets, const int64_t* b_offsets, int64_t pairs,  //
                            const float* alpha_pointer, void* c, int bf16, const int64_t* c_strides, int threads) {
    const Problem p{row_shape, columns, a, a_strides, b, ldb, segments, a_offsets, b_offsets, pairs};
    const float alpha = *alpha_pointer;
    const int64_t outer = row_shape[0] * row_shape[1] * row_shape[2], inner = row_shape[3], rows = outer * inner;
    const int64_t panels = (columns + kTileColumns - 1) / kTileColumns;
    if (rows == 0 || columns == 0) return 0;
    const double work = (double)rows * columns * segments * pairs;
    if (work < 1 << 18) threads = 1;

    // Row tiles of nearly equal height, grouped into blocks.
    const int64_t per_row = (inner + kTileRows - 1) / kTileRows;
    std::vector<Tile> tiles;
    tiles.reserve(outer * per_row);
    for (int64_t row = 0; row < outer; row++)
        for (int64_t t = 0; t < per_row; t++) {
            const int64_t start = t * inner / per_row, end = (t + 1) * inner / per_row;
            tiles.push_back({row, start, end - start});
        }
    const int64_t block_tiles = kBlockRows / kTileRows;
    const int64_t blocks = ((int64_t)tiles.size() + block_tiles - 1) / block_tiles;

    // Few results of long sums: cut the sum, in a way that only the shapes decide. A cut is between segments or in one.
    const int64_t total = segments * pairs;
    int64_t splits = 1;
    if (blocks * panels < 16) splits = std::clamp<int64_t>(total / kSplitPairs, 1, 16);
    const bool by_segment = segments >= splits;
    if (!by_segment) splits = std::min(splits, pairs);

    // B in panels of 64 columns, where it is read often enough.
    static thread_local Scratch panel_scratch, split_scratch;
    const bool packed = rows >= kPackRows && total > 0;
    uint32_t* panel_data = nullptr;
    if (packed) {
        panel_data = (uint32_t*)panel_scratch.get(panels * total * kTileColumns * 4);
        if (!panel_data) return 1;
#pragma omp parallel for collapse(2) num_threads(threads) if (threads > 1)
        for (int64_t panel = 0; panel < panels; panel++)
            for (int64_t s = 0; s < segments; s++) {
                const int64_t width = std::min(kTileColumns, columns - panel * kTileColumns);
                uint32_t* out = panel_data + (panel * segments + s) * pairs * kTileColumns;
                const uint32_t* in = b + b_offsets[s] + panel * kTileColumns;
                for (int64_t k = 0; k < pairs; k++) std::memcpy(out + k * kTileColumns, in + k * ldb, width * 4);
            }
    }
    float* partial = nullptr;
    const int64_t padded_columns = panels * kTileColumns;
    if (splits > 1) {
        partial = (float*)split_scratch.get(splits * rows * padded_columns * 4);
        if (!partial) return 1;
    }

#pragma omp parallel for collapse(3) schedule(dynamic) num_threads(threads) if (threads > 1)
    for (int64_t split = 0; split < splits; split++)
        for (int64_t block = 0; block < blocks; block++)
            for (int64_t panel = 0; panel < panels; panel++) {
                alignas(64) float sums[kBlockRows * kTileColumns];
                const int64_t t0 = block * block_tiles, t1 = std::min<int64_t>(tiles.size(), t0 + block_tiles);
                const int64_t width = std::min(kTileColumns, columns - panel * kTileColumns), vectors = (width + 15) / 16;
                const __mmask16 last = (__mmask16)((1u << (width - (vectors - 1) * 16)) - 1u);
                const uint32_t* bp = packed ? panel_data + panel * total * kTileColumns : b + panel * kTileColumns;
                int64_t s0 = 0, s_end = segments, k_begin = 0, k_end = pairs;
                if (by_segment) {
                    s0 = split * segments / splits, s_end = (split + 1) * segments / splits;
                } else {
                    k_begin = split * pairs / splits, k_end = (split + 1) * pairs / splits;
                }
                bool first = true;
                // Blocks of the reduction axis: several whole segments, or a part of one.
                const int64_t group = std::max<int64_t>(1, kBlockPairs / std::max<int64_t>(1, k_end - k_begin));
                for (int64_t s = s0; s < s_end; s += group)
                    for (int64_t k = k_begin; k < k_end; k += kBlockPairs) {
                        const int64_t s1 = std::min(s_end, s + group), k1 = std::min(k_end, k + kBlockPairs);
                        for (int64_t t = t0; t < t1; t++) {
                            const Tile& tile = tiles[t];
                            const uint32_t* at = a + start_of(tile.row, row_shape, a_strides) + tile.start * a_strides[3];
                            choose(tile.rows, vectors)(p, at, bp, packed, s, s1, k, k1, last,
                                                       sums + (t - t0) * kTileRows * kTileColumns, first);
                        }
                        first = false;
                    }
                if (first) std::memset(sums, 0, sizeof(sums));
                for (int64_t t = t0; t < t1; t++) {
                    const Tile& tile = tiles[t];
                    for (int64_t m = 0; m < tile.rows; m++) {
                        const float* from = sums + ((t - t0) * kTileRows + m) * kTileColumns;
                        const int64_t i = tile.start + m;
                        if (partial) {
                            std::memcpy(partial + ((split * outer + tile.row) * inner + i) * padded_columns +
                                            panel * kTileColumns, from, kTileColumns * 4);
                        } else {
                            const int64_t at = start_of(tile.row, row_shape, c_strides) + i * c_strides[3];
                            store(from, width, alpha, c, at + panel * kTileColumns, bf16);
                        }
                    }
                }
            }
    if (partial) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
        for (int64_t row = 0; row < rows; row++) {
            float* sum = partial + row * padded_columns;
            for (int64_t split = 1; split < splits; split++) {
                const float* add = partial + (split * rows + row) * padded_columns;
                for (int64_t n = 0; n < columns; n++) sum[n] += add[n];
            }
            store(sum, columns, alpha, c, start_of(row / inner, row_shape, c_strides) + row % inner * c_strides[3], bf16);
        }
    }
    return 0;
}

#else

extern "C" int bf16_product() { return 2; }

#endif

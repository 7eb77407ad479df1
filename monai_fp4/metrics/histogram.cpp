// Scores to sorted integer keys, the two steps that AUPRC spends its time on (monai_fp4/metrics/keys.py defines both).
//
// A float32 becomes an unsigned key of the same order: flip the sign bit of positive numbers, every bit of negative
// ones. Keys of tumour and of background are split in the same pass, without a branch, so that a noisy mask costs no
// misprediction. They are sorted by least-significant-digit radix sort, 8 bits a pass: 256 write streams fit the
// first-level cache, which 2048 do not (57 against 104 ms for 1e7 keys on Zen 4; NumPy's sort takes 425).
//
// Plain C interface, one thread, no allocation of its own beyond the counters.

#include <cstdint>
#include <cstring>

extern "C" {

// Keys of `n` scores, background's to `negatives` and tumour's to `positives`, each with room for `n`, in order.
// Labels are bytes. found[0] counts NaN, found[1] is above 1 where a label is neither 0 nor 1; the keys are then of no
// use. Returns the number of positives.
int64_t histogram_split(const float* scores, const uint8_t* labels, int64_t n, uint32_t* negatives,
                        uint32_t* positives, int64_t* found) {
    int64_t pos = 0, neg = 0, nans = 0;
    uint8_t seen = 0;
    for (int64_t i = 0; i < n; ++i) {
        const float score = scores[i] + 0.0f;  // -0.0 + 0.0 is 0.0
        uint32_t bits;
        std::memcpy(&bits, &score, sizeof bits);
        nans += score != score;
        seen |= labels[i];
        const uint32_t key = bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) | 0x80000000u);
        negatives[neg] = key;  // pos + neg is i: neither write leaves its array, and the wrong one is overwritten
        positives[pos] = key;
        const int64_t tumour = labels[i] & 1;
        pos += tumour;
        neg += 1 - tumour;
    }
    found[0] = nans;
    found[1] = seen;
    return pos;
}

// Sort `n` keys in place; `scratch` has room for as many.
void histogram_sort(uint32_t* keys, uint32_t* scratch, int64_t n) {
    int64_t count[4][256] = {};
    for (int64_t i = 0; i < n; ++i)
        for (int pass = 0; pass < 4; ++pass) ++count[pass][(keys[i] >> (8 * pass)) & 255];
    uint32_t *from = keys, *to = scratch;
    for (int pass = 0; pass < 4; ++pass) {
        int64_t *next = count[pass], below = 0;
        bool alike = false;  // all keys share this digit: nothing to move
        for (int digit = 0; digit < 256; ++digit) {
            const int64_t here = next[digit];
            alike |= here == n;
            next[digit] = below;
            below += here;
        }
        if (alike) continue;
        for (int64_t i = 0; i < n; ++i) to[next[(from[i] >> (8 * pass)) & 255]++] = from[i];
        uint32_t* swap = from;
        from = to;
        to = swap;
    }
    if (from != keys) std::memcpy(keys, from, static_cast<size_t>(n) * sizeof *keys);
}

}  // extern "C"

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Exact DVHs of all structures at once (host/dosimetry/dvh.h has the definitions).
 *
 * dose: float32 on the labels' grid, x fastest. Structures: kernels.h, "Voxels of structures".
 *
 *     sum_s, min_s, max_s over the voxels v of structure s;
 *     key of the voxel of rank r: the k for which  #{key(v) > k} <= r < #{key(v) >= k};
 *     histogram_s[b] = #{v : dvh_bin(dose(v)) = b}.
 *
 * Order statistics by radix selection: the digits of a key, eight bits each, are found one after the
 * other from the top. A pass over the voxels counts the next digit of those keys that begin with the
 * digits found so far; the digit of a rank is where the counts, added up from the top, go beyond it.
 * Four passes find all ranks of all structures. Against sorting: nothing of the size of the
 * structures is written, counts are 20 KB a structure whatever it holds, and only integers are added
 * by atomics, so that no result depends on an order. Against digits of eleven bits and three passes:
 * the tables of all ten ranks fit into 10 KB of shared memory instead of 80, eight times fewer
 * counters have to be cleared and given out for each tile, at the price of reading the dose once more.
 *
 * Preconditions: tiles cover their structure; fewer than 2^32 voxels in a tile; ranks below the
 * number of voxels of their structure. Doses need not be finite; faults are found here.
 * Threads: one block a tile, of which thread t takes voxels t, t + THREADS, ...; select: one block a
 * structure, one warp a rank; summary: one block a structure.
 * Bytes and operations per voxel and structure: 4 B of dose and the tile's share of its runs
 * (16 B / run) for each of five passes (survey, three of digits, histogram); about 30 integer
 * operations a pass, in the survey 8 of double, in the histogram one double division.
 * Tolerance: counts and keys exact. Sums are compensated (dvh_value.h) and joined in a fixed order:
 * the same bytes every time, within double rounding of the CPU's.
 */
#include "kernels/dvh_bin.h"
#include "kernels/structure_voxels.cuh"

#define THREADS 256u
#define DIGITS DEVICE_DVH_DIGITS
#define DIGIT_BITS 8

/* Adds a block's counts to the grid's. */
__device__ __forceinline__ void give_counts(const unsigned *counts, unsigned n,
                                            unsigned long long *to)
{
    for (unsigned i = threadIdx.x; i < n; i += THREADS)
        if (counts[i])
            atomicAdd(&to[i], static_cast<unsigned long long>(counts[i]));
}

__device__ __forceinline__ void clear(device_dvh_summary &s)
{
    s.sum.sum = s.sum.lost = 0;
    s.lowest = 0xffffffffu;
    s.highest = 0;
    s.fault = NO_FAULT;
}

__device__ __forceinline__ void join(device_dvh_summary &s, const device_dvh_summary &other)
{
    dvh_sum_join(&s.sum, other.sum);
    s.lowest = min(s.lowest, other.lowest);
    s.highest = max(s.highest, other.highest);
    s.fault = other.fault < s.fault ? other.fault : s.fault;
}

/* Everything that needs no digits, and the first digit. */
static __global__ void dvh_survey_kernel(const float *dose, device_structures structures,
                                         device_dvh_summary *partial, unsigned long long *digits)
{
    device_dvh_summary *joined = dynamic_shared<device_dvh_summary>();
    unsigned *counts = reinterpret_cast<unsigned *>(joined + THREADS);
    const device_tile tile = structures.tile[blockIdx.x];
    for (unsigned i = threadIdx.x; i < DIGITS; i += THREADS)
        counts[i] = 0;
    __syncthreads();
    device_dvh_summary mine;
    clear(mine);
    for (unsigned i = threadIdx.x; i < tile.voxels; i += THREADS) {
        float value = dose[tile_voxel(structures.run, tile, i)];
        unsigned key = dvh_key(value);
        if (!dvh_is_finite(value) && mine.fault == NO_FAULT)
            mine.fault = tile.place + i;
        dvh_sum_add(&mine.sum, static_cast<double>(value));
        mine.lowest = min(mine.lowest, key);
        mine.highest = max(mine.highest, key);
        atomicAdd(&counts[key >> (32 - DIGIT_BITS)], 1u);
    }
    join_threads(mine, joined); /* its barriers also end the counting */
    if (threadIdx.x == 0)
        partial[blockIdx.x] = mine;
    give_counts(counts, DIGITS, digits + size_t(tile.structure) * DVH_RANKS * DIGITS);
}

/* By one warp: the digit from the top at which the counts go beyond the rank. What lies above it is
 * taken off the rank. */
__device__ __forceinline__ unsigned select_digit(const unsigned long long *count,
                                                 unsigned long long &rank)
{
    unsigned lane = threadIdx.x % 32;
    for (unsigned chunk = 0; chunk < DIGITS; chunk += 32) {
        unsigned long long here = count[DIGITS - 1 - chunk - lane], upto = here;
        for (unsigned step = 1; step < 32; step *= 2) {
            unsigned long long other = __shfl_up_sync(0xffffffffu, upto, step);
            if (lane >= step)
                upto += other;
        }
        unsigned beyond = __ballot_sync(0xffffffffu, upto > rank);
        if (beyond) {
            int first = __ffs(static_cast<int>(beyond)) - 1;
            rank -= __shfl_sync(0xffffffffu, upto - here, first);
            return DIGITS - 1 - chunk - static_cast<unsigned>(first);
        }
        rank -= __shfl_sync(0xffffffffu, upto, 31);
    }
    return 0; /* a structure without voxels */
}

/* The next digit of each rank; the tables are cleared for the pass after it. */
static __global__ void dvh_select_kernel(device_dvh_rank *ranks, unsigned long long *digits)
{
    unsigned *keys = dynamic_shared<unsigned>(); /* [DVH_RANKS] */
    unsigned warp = threadIdx.x / 32;
    device_dvh_rank *rank = ranks + size_t(blockIdx.x) * DVH_RANKS + warp;
    unsigned long long *tables = digits + size_t(blockIdx.x) * DVH_RANKS * DIGITS;
    unsigned long long left = rank->rank;
    unsigned digit = select_digit(tables + size_t(rank->table) * DIGITS, left);
    unsigned key = rank->key << DIGIT_BITS | digit;
    if (threadIdx.x % 32 == 0)
        keys[warp] = key;
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        /* Ranks whose keys have begun in the same way share the table of the first of them. */
        unsigned table = 0;
        while (keys[table] != key)
            table++;
        rank->rank = left;
        rank->key = key;
        rank->table = table;
    }
    for (unsigned i = threadIdx.x; i < DVH_RANKS * DIGITS; i += blockDim.x)
        tables[i] = 0;
}

/* Counts the digit at `shift` of the keys that begin as a rank's. */
static __global__ void dvh_digits_kernel(const float *dose, device_structures structures,
                                         const device_dvh_rank *ranks, unsigned long long *digits,
                                         unsigned shift)
{
    unsigned *counts = dynamic_shared<unsigned>(); /* [DVH_RANKS][DIGITS] */
    unsigned *begin = counts + DVH_RANKS * DIGITS; /* [DVH_RANKS] of the tables in use */
    unsigned *table = begin + DVH_RANKS;           /* [DVH_RANKS] */
    unsigned *used = table + DVH_RANKS;            /* [1] */
    const device_tile tile = structures.tile[blockIdx.x];
    for (unsigned i = threadIdx.x; i < DVH_RANKS * DIGITS; i += THREADS)
        counts[i] = 0;
    if (threadIdx.x == 0) {
        const device_dvh_rank *rank = ranks + size_t(tile.structure) * DVH_RANKS;
        unsigned n = 0;
        for (unsigned r = 0; r < DVH_RANKS; r++)
            if (rank[r].table == r) {
                begin[n] = rank[r].key;
                table[n++] = r;
            }
        *used = n;
    }
    __syncthreads();
    unsigned n = *used;
    for (unsigned i = threadIdx.x; i < tile.voxels; i += THREADS) {
        unsigned key = dvh_key(dose[tile_voxel(structures.run, tile, i)]) >> shift;
        for (unsigned r = 0; r < n; r++)
            if (key >> DIGIT_BITS == begin[r])
                atomicAdd(&counts[table[r] * DIGITS + key % DIGITS], 1u);
    }
    __syncthreads();
    give_counts(counts, DVH_RANKS * DIGITS, digits + size_t(tile.structure) * DVH_RANKS * DIGITS);
}

/* Bins and threshold classes below these are counted in shared memory first; of those above, which
 * are hit rarely, each voxel is counted at once. */
#define SHARED_BINS 4096u
#define SHARED_CLASSES 256u

__device__ __forceinline__ void count_one(unsigned *shared, unsigned shared_n,
                                          unsigned long long *all, unsigned i)
{
    if (i < shared_n)
        atomicAdd(&shared[i], 1u);
    else
        atomicAdd(&all[i], 1ull);
}

/* How many of the ascending thresholds the key reaches. */
__device__ __forceinline__ unsigned passed_thresholds(const unsigned *threshold, unsigned n,
                                                      unsigned key)
{
    unsigned low = 0, high = n;
    while (low < high) {
        unsigned middle = low + (high - low) / 2;
        if (threshold[middle] <= key)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static __global__ void dvh_histogram_kernel(const float *dose, device_structures structures,
                                            const device_dvh_bins *all_bins,
                                            unsigned long long *histogram,
                                            const unsigned *threshold, unsigned thresholds,
                                            unsigned long long *passed)
{
    unsigned *counts = dynamic_shared<unsigned>();
    const device_tile tile = structures.tile[blockIdx.x];
    const device_dvh_bins bins = all_bins[tile.structure];
    unsigned few_bins = min(bins.bins, SHARED_BINS);
    unsigned few_classes = thresholds > 0 ? min(thresholds + 1, SHARED_CLASSES) : 0;
    unsigned *classes = counts + SHARED_BINS;
    histogram += bins.first;
    passed += tile.structure * (size_t(thresholds) + 1);
    for (unsigned i = threadIdx.x; i < SHARED_BINS + few_classes; i += THREADS)
        counts[i] = 0;
    __syncthreads();
    for (unsigned i = threadIdx.x; i < tile.voxels; i += THREADS) {
        float value = dose[tile_voxel(structures.run, tile, i)];
        count_one(counts, few_bins, histogram, dvh_bin(value, bins.width, bins.bins));
        if (thresholds > 0)
            count_one(classes, few_classes, passed,
                      passed_thresholds(threshold, thresholds, dvh_key(value)));
    }
    __syncthreads();
    give_counts(counts, few_bins, histogram);
    give_counts(classes, few_classes, passed);
}

extern "C" cudaError_t kernel_dvh_statistics(const device_dvh_statistics *dvh, cudaStream_t stream)
{
    const device_structures &s = dvh->structures;
    size_t tables = size_t(s.count) * DVH_RANKS * DIGITS;
    size_t shared_survey = THREADS * sizeof(device_dvh_summary) + DIGITS * sizeof(unsigned);
    size_t shared_tables = DVH_RANKS * (DIGITS + 2) * sizeof(unsigned) + sizeof(unsigned);
    if (s.count == 0)
        return cudaSuccess;
    cudaError_t error = cudaMemsetAsync(dvh->digits, 0, tables * sizeof *dvh->digits, stream);
    if (error == cudaSuccess)
        error = launch(dvh_survey_kernel, s.tiles, THREADS, shared_survey, stream, dvh->dose, s,
                       dvh->partial, dvh->digits);
    if (error == cudaSuccess)
        error = join_tiles(s, dvh->partial, dvh->summary, stream);
    for (int shift = 32 - DIGIT_BITS; shift >= 0 && error == cudaSuccess; shift -= DIGIT_BITS) {
        if (shift < 32 - DIGIT_BITS)
            error = launch(dvh_digits_kernel, s.tiles, THREADS, shared_tables, stream, dvh->dose, s,
                           dvh->rank, dvh->digits, static_cast<unsigned>(shift));
        if (error == cudaSuccess)
            error = launch(dvh_select_kernel, s.count, DVH_RANKS * 32, DVH_RANKS * sizeof(unsigned),
                           stream, dvh->rank, dvh->digits);
    }
    return error;
}

extern "C" cudaError_t kernel_dvh_histogram(const float *dose, const device_structures *structures,
                                            const device_dvh_bins *bins,
                                            unsigned long long *histogram, size_t histogram_bins,
                                            const unsigned *threshold, unsigned thresholds,
                                            unsigned long long *passed, cudaStream_t stream)
{
    size_t classes = structures->count * (size_t(thresholds) + 1);
    cudaError_t error = cudaMemsetAsync(histogram, 0, histogram_bins * sizeof *histogram, stream);
    if (error == cudaSuccess && thresholds > 0)
        error = cudaMemsetAsync(passed, 0, classes * sizeof *passed, stream);
    if (error == cudaSuccess)
        error = launch(dvh_histogram_kernel, structures->tiles, THREADS,
                       (SHARED_BINS + SHARED_CLASSES) * sizeof(unsigned), stream, dose, *structures,
                       bins, histogram, threshold, thresholds, passed);
    return error;
}

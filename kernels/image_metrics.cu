/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sums over two volumes a and b from which image metrics are made, and structural similarity.
 *
 * Sums (kernels.h has the list): per structure, of which one may be the whole volume, one run.
 * Threads: one block a tile; thread t takes voxels t, t + THREADS, ...
 * 8 B and about 12 double operations a voxel for the sums, 8 B and 8 for the moments.
 * All in double, exact products of floats, joined in a fixed order. Everything but ab adds up terms of
 * one sign wherever the data has one, and ab with aa, bb bounds its own error (Cauchy-Schwarz), so
 * plain sums are good to about 1e-14 of the sum of magnitudes. Variances and covariance are not made
 * from these: a second pass sums products of deviations from the means, as CT numbers or doses far
 * from zero would cancel otherwise.
 *
 * SSIM: with weights w of a window, separable, normalised, about each window position,
 *     u = sum w a,  v = sum w a a - u u  (and the like for b and a b),  n' = n/(n - 1) or 1,
 *     S = (2 u_a u_b + C1)(2 n' v_ab + C2) / ((u_a^2 + u_b^2 + C1)(n' v_a + n' v_b + C2)),
 *     C1 = (0.01 range)^2,  C2 = (0.03 range)^2,
 * which is what scikit-image's structural_similarity computes with its defaults, and with
 * gaussian_weights=True, sigma=1.5, use_sample_covariance=False, on float64. Windows that reach over
 * the border are left out, as there.
 * Threads: a block has 16 x 16 window positions in x and y and goes along z, one plane of voxels at a
 * time: loads (16 + W - 1)^2 voxels, filters the five products along x, then along y; each thread adds
 * the plane, weighted, to the W windows along z that it belongs to, of which one is then complete.
 * 8 B a voxel from memory, (1 + (W - 1)/16)^2 times from the caches; about 5 (2 + (W - 1)/16) + 5 W
 * double multiply-adds.
 * Tolerance: v loses u^2 * 2^-53, which C2 absorbs unless u exceeds the range by orders of magnitude:
 * 1e-12 of the mean where |u| <= range.
 */
#include "kernels/structure_voxels.cuh"

#include <math.h>

#define THREADS 256u

/* ---- Sums ----------------------------------------------------------------------------------- */

__device__ __forceinline__ void clear(device_metric_sums &s)
{
    s.count = s.not_finite = s.relative_count = 0;
    s.a = s.b = s.aa = s.bb = s.ab = 0;
    s.squared = s.absolute = s.relative = s.worst = 0;
    s.lowest = static_cast<double>(INFINITY);
    s.highest = -static_cast<double>(INFINITY);
}

__device__ __forceinline__ void join(device_metric_sums &s, const device_metric_sums &other)
{
    s.count += other.count;
    s.not_finite += other.not_finite;
    s.relative_count += other.relative_count;
    s.a += other.a;
    s.b += other.b;
    s.aa += other.aa;
    s.bb += other.bb;
    s.ab += other.ab;
    s.squared += other.squared;
    s.absolute += other.absolute;
    s.relative += other.relative;
    s.worst = fmax(s.worst, other.worst);
    s.lowest = fmin(s.lowest, other.lowest);
    s.highest = fmax(s.highest, other.highest);
}

__device__ __forceinline__ void add_voxel(device_metric_sums &s, double a, double b,
                                          double relative_above)
{
    double difference = fabs(a - b);
    s.count++;
    s.a += a;
    s.b += b;
    s.aa += a * a;
    s.bb += b * b;
    s.ab += a * b;
    s.squared += difference * difference;
    s.absolute += difference;
    s.worst = fmax(s.worst, difference);
    s.lowest = fmin(s.lowest, b);
    s.highest = fmax(s.highest, b);
    if (fabs(b) > relative_above) {
        s.relative_count++;
        s.relative += difference / fabs(b);
    }
}

static __global__ void metric_sums_kernel(const float *a, const float *b,
                                          device_structures structures, double relative_above,
                                          device_metric_sums *partial)
{
    const device_tile tile = structures.tile[blockIdx.x];
    device_metric_sums mine;
    clear(mine);
    for (unsigned i = threadIdx.x; i < tile.voxels; i += THREADS) {
        size_t voxel = tile_voxel(structures.run, tile, i);
        float va = a[voxel], vb = b[voxel];
        if (dvh_is_finite(va) && dvh_is_finite(vb))
            add_voxel(mine, static_cast<double>(va), static_cast<double>(vb), relative_above);
        else
            mine.not_finite++;
    }
    join_threads(mine, dynamic_shared<device_metric_sums>());
    if (threadIdx.x == 0)
        partial[blockIdx.x] = mine;
}

__device__ __forceinline__ void clear(device_metric_moments &m)
{
    m.aa = m.bb = m.ab = 0;
}

__device__ __forceinline__ void join(device_metric_moments &m, const device_metric_moments &other)
{
    m.aa += other.aa;
    m.bb += other.bb;
    m.ab += other.ab;
}

static __global__ void metric_moments_kernel(const float *a, const float *b,
                                             device_structures structures,
                                             const device_metric_sums *sums,
                                             device_metric_moments *partial)
{
    const device_tile tile = structures.tile[blockIdx.x];
    const device_metric_sums &s = sums[tile.structure];
    double mean_a = s.a / static_cast<double>(s.count);
    double mean_b = s.b / static_cast<double>(s.count);
    device_metric_moments mine;
    clear(mine);
    for (unsigned i = threadIdx.x; i < tile.voxels; i += THREADS) {
        size_t voxel = tile_voxel(structures.run, tile, i);
        float va = a[voxel], vb = b[voxel];
        if (!dvh_is_finite(va) || !dvh_is_finite(vb))
            continue;
        double da = static_cast<double>(va) - mean_a, db = static_cast<double>(vb) - mean_b;
        mine.aa += da * da;
        mine.bb += db * db;
        mine.ab += da * db;
    }
    join_threads(mine, dynamic_shared<device_metric_moments>());
    if (threadIdx.x == 0)
        partial[blockIdx.x] = mine;
}

extern "C" cudaError_t kernel_metric_sums(const device_metrics *metrics, cudaStream_t stream)
{
    const device_structures &s = metrics->structures;
    /* The second pass's results are smaller and lie where the first pass's lay. */
    device_metric_moments *partial = reinterpret_cast<device_metric_moments *>(metrics->partial);
    cudaError_t error =
        launch(metric_sums_kernel, s.tiles, THREADS, THREADS * sizeof(device_metric_sums), stream,
               metrics->a, metrics->b, s, metrics->relative_above, metrics->partial);
    if (error == cudaSuccess)
        error = join_tiles(s, metrics->partial, metrics->sums, stream);
    if (error == cudaSuccess)
        error =
            launch(metric_moments_kernel, s.tiles, THREADS, THREADS * sizeof(device_metric_moments),
                   stream, metrics->a, metrics->b, s, metrics->sums, partial);
    if (error == cudaSuccess)
        error = join_tiles(s, partial, metrics->moments, stream);
    return error;
}

/* ---- Structural similarity ------------------------------------------------------------------ */

#define SIDE 16u   /* of a block's window positions in x and y */
#define DEPTH 64u  /* window positions along z that a block goes through */
#define PRODUCTS 5 /* a, b, aa, bb, ab */

struct ssim_sum {
    double sum;
};

__device__ __forceinline__ void join(ssim_sum &s, const ssim_sum &other)
{
    s.sum += other.sum;
}

template <unsigned W> struct ssim_setting {
    double weight[W]; /* along each axis */
    double c1, c2, normalise;
};

/* Window positions along the axes. */
struct ssim_grid {
    unsigned dim[3], positions[3], blocks[3];
};

__device__ __forceinline__ double similarity(const double sum[PRODUCTS], double c1, double c2,
                                             double normalise)
{
    double ua = sum[0], ub = sum[1];
    double va = normalise * (sum[2] - ua * ua), vb = normalise * (sum[3] - ub * ub);
    double vab = normalise * (sum[4] - ua * ub);
    return (2 * ua * ub + c1) * (2 * vab + c2) / ((ua * ua + ub * ub + c1) * (va + vb + c2));
}

/* What a block has of one plane of voxels; `patch`: what windows at SIDE positions see. */
template <unsigned W> struct ssim_plane {
    static constexpr unsigned patch = SIDE + W - 1;
    double a[patch][patch], b[patch][patch];
    double filtered[PRODUCTS][patch][SIDE]; /* along x */
};

template <unsigned W>
__device__ __forceinline__ void load_plane(ssim_plane<W> &plane, const float *a, const float *b,
                                           const ssim_grid &grid, unsigned x0, unsigned y0,
                                           unsigned z)
{
    constexpr unsigned patch = ssim_plane<W>::patch;
    for (unsigned i = threadIdx.x; i < patch * patch; i += THREADS) {
        unsigned x = x0 + i % patch, y = y0 + i / patch;
        bool inside = x < grid.dim[0] && y < grid.dim[1]; /* else of no window that counts */
        size_t voxel = (size_t(z) * grid.dim[1] + y) * grid.dim[0] + x;
        plane.a[i / patch][i % patch] = inside ? static_cast<double>(a[voxel]) : 0;
        plane.b[i / patch][i % patch] = inside ? static_cast<double>(b[voxel]) : 0;
    }
}

template <unsigned W>
__device__ __forceinline__ void filter_x(ssim_plane<W> &plane, const ssim_setting<W> &setting)
{
    for (unsigned i = threadIdx.x; i < ssim_plane<W>::patch * SIDE; i += THREADS) {
        unsigned row = i / SIDE, x = i % SIDE;
        double sum[PRODUCTS] = {0, 0, 0, 0, 0};
#pragma unroll
        for (unsigned j = 0; j < W; j++) {
            double a = plane.a[row][x + j], b = plane.b[row][x + j];
            double wa = setting.weight[j] * a, wb = setting.weight[j] * b;
            sum[0] += wa;
            sum[1] += wb;
            sum[2] += wa * a;
            sum[3] += wb * b;
            sum[4] += wa * b;
        }
        for (int p = 0; p < PRODUCTS; p++)
            plane.filtered[p][row][x] = sum[p];
    }
}

template <unsigned W>
static __global__ void __launch_bounds__(THREADS)
    ssim_kernel(const float *a, const float *b, ssim_grid grid, ssim_setting<W> setting,
                ssim_sum *partial)
{
    ssim_plane<W> &plane = *dynamic_shared<ssim_plane<W>>();
    unsigned tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
    unsigned row = blockIdx.x / grid.blocks[0];
    unsigned x0 = blockIdx.x % grid.blocks[0] * SIDE, y0 = row % grid.blocks[1] * SIDE;
    unsigned z0 = row / grid.blocks[1] * DEPTH, end = min(z0 + DEPTH, grid.positions[2]) + W - 1;
    bool counts = x0 + tx < grid.positions[0] && y0 + ty < grid.positions[1];
    double window[PRODUCTS][W]; /* [.][j] has seen j + 1 planes */
    ssim_sum mine = {0};
    for (int p = 0; p < PRODUCTS; p++)
#pragma unroll
        for (unsigned j = 0; j < W; j++)
            window[p][j] = 0;
    for (unsigned z = z0; z < end; z++) {
        load_plane(plane, a, b, grid, x0, y0, z);
        __syncthreads();
        filter_x(plane, setting);
        __syncthreads();
        double complete[PRODUCTS];
#pragma unroll
        for (int p = 0; p < PRODUCTS; p++) {
            double sum = 0;
#pragma unroll
            for (unsigned j = 0; j < W; j++)
                sum += setting.weight[j] * plane.filtered[p][ty + j][tx];
#pragma unroll
            for (unsigned j = W - 1; j > 0; j--)
                window[p][j] = window[p][j - 1] + setting.weight[j] * sum;
            window[p][0] = setting.weight[0] * sum;
            complete[p] = window[p][W - 1];
        }
        if (counts && z - z0 >= W - 1)
            mine.sum += similarity(complete, setting.c1, setting.c2, setting.normalise);
    }
    /* Sums lie where the voxels were, which nobody reads after the loop's last barrier. */
    static_assert(THREADS * sizeof(ssim_sum) <= sizeof plane.a, "sums reach into what is read");
    join_threads(mine, dynamic_shared<ssim_sum>());
    if (threadIdx.x == 0)
        partial[blockIdx.x] = mine;
}

/* One block. */
static __global__ void ssim_mean_kernel(const ssim_sum *partial, unsigned n, double windows,
                                        double *mean)
{
    ssim_sum mine = {0};
    for (unsigned i = threadIdx.x; i < n; i += THREADS)
        join(mine, partial[i]);
    join_threads(mine, dynamic_shared<ssim_sum>());
    if (threadIdx.x == 0)
        *mean = mine.sum / windows; /* 0/0 is NAN */
}

static const unsigned window_width[SSIM_WINDOWS] = {7, 11};

/* False if no window fits. */
static bool make_grid(const size_t dim[3], ssim_window window, ssim_grid *grid)
{
    bool fits = true;
    for (int i = 0; i < 3; i++) {
        size_t width = window_width[window];
        size_t positions = dim[i] >= width ? dim[i] - width + 1 : 0;
        fits = fits && positions > 0;
        grid->dim[i] = static_cast<unsigned>(dim[i]);
        grid->positions[i] = static_cast<unsigned>(positions);
        grid->blocks[i] = blocks_for(positions, i < 2 ? SIDE : DEPTH);
    }
    return fits;
}

static size_t count_blocks(const size_t dim[3], ssim_window window)
{
    ssim_grid grid;
    if (!make_grid(dim, window, &grid))
        return 0;
    return size_t(grid.blocks[0]) * grid.blocks[1] * grid.blocks[2];
}

extern "C" size_t ssim_workspace(const size_t dim[3], ssim_window window)
{
    return count_blocks(dim, window) * sizeof(ssim_sum);
}

template <unsigned W>
static cudaError_t launch_ssim(const float *a, const float *b, const ssim_grid &grid,
                               unsigned blocks, ssim_setting<W> setting, double range,
                               ssim_sum *partial, cudaStream_t stream)
{
    setting.c1 = 0.01 * range * (0.01 * range);
    setting.c2 = 0.03 * range * (0.03 * range);
    return launch(ssim_kernel<W>, blocks, THREADS, sizeof(ssim_plane<W>), stream, a, b, grid,
                  setting, partial);
}

static ssim_setting<7> uniform_window()
{
    ssim_setting<7> s = {};
    for (double &weight : s.weight)
        weight = 1.0 / 7;
    s.normalise = 343.0 / 342;
    return s;
}

static ssim_setting<11> gaussian_window()
{
    ssim_setting<11> s = {};
    double sum = 0;
    for (int i = 0; i < 11; i++)
        sum += s.weight[i] = exp(-0.5 * (i - 5) * (i - 5) / (1.5 * 1.5));
    for (double &weight : s.weight)
        weight /= sum;
    s.normalise = 1;
    return s;
}

extern "C" cudaError_t kernel_ssim(const float *a, const float *b, const size_t dim[3],
                                   ssim_window window, double range, double *mean, void *workspace,
                                   cudaStream_t stream)
{
    ssim_grid grid;
    ssim_sum *partial = static_cast<ssim_sum *>(workspace);
    double windows = 0;
    unsigned blocks = static_cast<unsigned>(count_blocks(dim, window));
    if (make_grid(dim, window, &grid))
        windows =
            static_cast<double>(size_t(grid.positions[0]) * grid.positions[1] * grid.positions[2]);
    cudaError_t error =
        window == SSIM_UNIFORM
            ? launch_ssim(a, b, grid, blocks, uniform_window(), range, partial, stream)
            : launch_ssim(a, b, grid, blocks, gaussian_window(), range, partial, stream);
    if (error == cudaSuccess)
        error = launch(ssim_mean_kernel, 1, THREADS, THREADS * sizeof(ssim_sum), stream, partial,
                       blocks, windows, mean);
    return error;
}

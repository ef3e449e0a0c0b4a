/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Additive attention gate (Oktay et al. 2018, eq. 1-2), on one grid:
 *     g = coarse_weight coarse + coarse_bias            (stored by a step of its own elsewhere)
 *     a = relu(skip_weight skip + skip_bias + g)
 *     s = sigmoid(psi a + psi_bias)
 *     out = skip * s
 * g, a and s are rounded to the element type, as if stored, before they are used.
 *
 * Layouts: channels-last, views everywhere; weights (inner, I), psi (inner), in the tensors' type.
 * Preconditions (attention_gate_takes): one element type and size throughout, out's channels are
 * skip's, weights and at least 16 voxels fit into shared memory. out may be another part of the
 * buffer in which skip or coarse lies, but none of their elements.
 *
 * A block takes consecutive voxels of one sample, as many as give each thread one item (16 to 256).
 * Weights, skip and coarse come into shared memory as rows of one inner channel or voxel: each
 * voxel is read from memory once. Rows are an odd number of 16-byte pieces long, zeros beyond their
 * channels, so that the rows that neighbouring threads read begin in different banks. An item is 4
 * voxels x 4 inner channels of a, a quarter of the block's voxels and of the inner channels apart.
 * Then a thread per voxel adds psi a, and all multiply and store, 16 bytes each where that goes.
 *
 * Per voxel: 2*inner*(coarse + skip channels + 1) FLOPs; reads coarse and skip, writes out. 32 + 32
 * channels, 16 inner, bf16: 2.1 kFLOP, 192 bytes.
 *
 * Tolerance: sums in float, one fma per product in the order of the channels, bias at the end: the
 * same bytes as convolution.cu and pointwise.cu step by step.
 */
#include "kernels/epilogue.cuh"

static constexpr unsigned gate_threads = 256;
static constexpr unsigned most_voxels = 256, least_voxels = 16;

/* Offsets in bytes from the start of shared memory; rows in elements. */
struct gate_layout {
    unsigned voxels; /* of a block */
    unsigned coarse_row, skip_row;
    unsigned coarse_weights, skip_weights, coarse, skip, activations, psi, scale, bytes;
    bool coarse_moves_8, skip_moves_8, out_moves_8;
};

struct gate_tensors {
    device_tensor coarse, skip, out;
};

/* Rows from memory to shared memory, zeros beyond n_rows and channels. Threads side by side bring
 * 16 bytes each. */
template <class T>
__device__ __forceinline__ void load_rows(const T *from, size_t pitch, unsigned channels,
                                          unsigned n_rows, bool moves_8, T *to, unsigned row_length,
                                          unsigned rows)
{
    unsigned pieces = (channels + 7) / 8;
    for (unsigned i = threadIdx.x; i < rows * pieces; i += blockDim.x) {
        unsigned row = i / pieces, c = i % pieces * 8;
        const T *source = from + row * pitch + c;
        float8 values = {};
        if (row < n_rows && moves_8) {
            values = load8(source);
        } else if (row < n_rows) {
#pragma unroll
            for (unsigned k = 0; k < 8; k++)
                if (c + k < channels)
                    values.v[k] = to_float(source[k]);
        }
        store8(to + row * row_length + c, values);
    }
}

/* Adds w[inner][c] * x[voxel][c] over the channels; rows of both are `apart` rows apart. */
template <class T>
__device__ __forceinline__ void add_products(const T *x, unsigned voxels_apart, const T *w,
                                             unsigned inner_apart, unsigned row_length,
                                             unsigned channels, float sum[4][4])
{
#pragma unroll 1
    for (unsigned c = 0; c < channels; c += 8) {
        float8 a[4];
#pragma unroll
        for (unsigned i = 0; i < 4; i++)
            a[i] = load8(x + i * voxels_apart * row_length + c);
#pragma unroll
        for (unsigned j = 0; j < 4; j++) {
            float8 b = load8(w + j * inner_apart * row_length + c);
#pragma unroll
            for (unsigned k = 0; k < 8; k++)
#pragma unroll
                for (unsigned i = 0; i < 4; i++)
                    sum[i][j] = fmaf(a[i].v[k], b.v[k], sum[i][j]);
        }
    }
}

/* As a step would store it. */
template <class T> __device__ __forceinline__ float rounded(float v)
{
    return to_float(from_float<T>(v));
}

__device__ __forceinline__ float bias_of(const float *bias, unsigned i)
{
    return bias ? bias[i] : 0;
}

/* activations[inner channel][voxel] */
template <class T>
__device__ __forceinline__ void make_activations(const device_gate &gate, const gate_tensors &t,
                                                 const gate_layout &layout, unsigned char *shared)
{
    const T *coarse_weights = reinterpret_cast<const T *>(shared + layout.coarse_weights);
    const T *skip_weights = reinterpret_cast<const T *>(shared + layout.skip_weights);
    const T *coarse = reinterpret_cast<const T *>(shared + layout.coarse);
    const T *skip = reinterpret_cast<const T *>(shared + layout.skip);
    T *activations = reinterpret_cast<T *>(shared + layout.activations);
    unsigned voxels_apart = layout.voxels / 4, inner_apart = (gate.inner + 3) / 4;
    for (unsigned item = threadIdx.x; item < voxels_apart * inner_apart; item += blockDim.x) {
        unsigned inner = item % inner_apart, voxel = item / inner_apart;
        float g[4][4] = {}, sum[4][4] = {};
        add_products(coarse + voxel * layout.coarse_row, voxels_apart,
                     coarse_weights + inner * layout.coarse_row, inner_apart, layout.coarse_row,
                     t.coarse.channels, g);
        add_products(skip + voxel * layout.skip_row, voxels_apart,
                     skip_weights + inner * layout.skip_row, inner_apart, layout.skip_row,
                     t.skip.channels, sum);
#pragma unroll
        for (unsigned j = 0; j < 4; j++) {
            unsigned f = inner + j * inner_apart;
            if (f >= gate.inner)
                continue;
            float coarse_bias = bias_of(gate.coarse_bias, f);
            float skip_bias = bias_of(gate.skip_bias, f);
#pragma unroll
            for (unsigned i = 0; i < 4; i++) {
                float v = sum[i][j] + skip_bias + rounded<T>(g[i][j] + coarse_bias);
                activations[f * layout.voxels + voxel + i * voxels_apart] =
                    from_float<T>(activate(CHAIN_RELU, v, 0.0f));
            }
        }
    }
}

/* scale[voxel]: s. */
template <class T>
__device__ __forceinline__ void make_scale(const device_gate &gate, const gate_layout &layout,
                                           unsigned char *shared)
{
    const T *activations = reinterpret_cast<const T *>(shared + layout.activations);
    const float *psi = reinterpret_cast<const float *>(shared + layout.psi);
    float *scale = reinterpret_cast<float *>(shared + layout.scale);
    for (unsigned voxel = threadIdx.x; voxel < layout.voxels; voxel += blockDim.x) {
        float sum = 0;
        for (unsigned f = 0; f < gate.inner; f++)
            sum = fmaf(to_float(activations[f * layout.voxels + voxel]), psi[f], sum);
        scale[voxel] = rounded<T>(activate(CHAIN_SIGMOID, sum + bias_of(gate.psi_bias, 0), 0.0f));
    }
}

/* out: of the first of n voxels. */
template <class T>
__device__ __forceinline__ void store_scaled(const gate_tensors &t, const gate_layout &layout,
                                             const unsigned char *shared, T *out, unsigned n)
{
    const T *skip = reinterpret_cast<const T *>(shared + layout.skip);
    const float *scale = reinterpret_cast<const float *>(shared + layout.scale);
    unsigned channels = t.skip.channels, pieces = (channels + 7) / 8;
    for (unsigned i = threadIdx.x; i < n * pieces; i += blockDim.x) {
        unsigned voxel = i / pieces, c = i % pieces * 8;
        float8 values = load8(skip + voxel * layout.skip_row + c);
#pragma unroll
        for (unsigned k = 0; k < 8; k++)
            values.v[k] *= scale[voxel];
        T *to = out + voxel * t.out.pitch + c;
        if (layout.out_moves_8) {
            store8(to, values);
            continue;
        }
#pragma unroll
        for (unsigned k = 0; k < 8; k++)
            if (c + k < channels)
                to[k] = from_float<T>(values.v[k]);
    }
}

template <class T>
static __global__ void __launch_bounds__(gate_threads)
    attention_gate_kernel(device_gate gate, gate_tensors t, gate_layout layout)
{
    unsigned char *shared = dynamic_shared<unsigned char>();
    unsigned voxels = t.out.dim[0] * t.out.dim[1] * t.out.dim[2];
    unsigned tiles = (voxels + layout.voxels - 1) / layout.voxels;
    unsigned sample = blockIdx.x / tiles, first = blockIdx.x % tiles * layout.voxels;
    unsigned n = min(voxels - first, layout.voxels), inner_rows = (gate.inner + 3) / 4 * 4;

    load_rows(static_cast<const T *>(gate.coarse_weight), t.coarse.channels, t.coarse.channels,
              gate.inner, false, reinterpret_cast<T *>(shared + layout.coarse_weights),
              layout.coarse_row, inner_rows);
    load_rows(static_cast<const T *>(gate.skip_weight), t.skip.channels, t.skip.channels,
              gate.inner, false, reinterpret_cast<T *>(shared + layout.skip_weights),
              layout.skip_row, inner_rows);
    load_rows(static_cast<const T *>(t.coarse.data) + sample * t.coarse.sample +
                  first * t.coarse.pitch,
              t.coarse.pitch, t.coarse.channels, n, layout.coarse_moves_8,
              reinterpret_cast<T *>(shared + layout.coarse), layout.coarse_row, layout.voxels);
    load_rows(static_cast<const T *>(t.skip.data) + sample * t.skip.sample + first * t.skip.pitch,
              t.skip.pitch, t.skip.channels, n, layout.skip_moves_8,
              reinterpret_cast<T *>(shared + layout.skip), layout.skip_row, layout.voxels);
    for (unsigned f = threadIdx.x; f < gate.inner; f += blockDim.x)
        reinterpret_cast<float *>(shared + layout.psi)[f] =
            to_float(static_cast<const T *>(gate.psi_weight)[f]);
    __syncthreads();
    make_activations<T>(gate, t, layout, shared);
    __syncthreads();
    make_scale<T>(gate, layout, shared);
    __syncthreads();
    store_scaled(t, layout, shared,
                 static_cast<T *>(t.out.data) + sample * t.out.sample + first * t.out.pitch, n);
}

/* ---- Launch --------------------------------------------------------------------------------- */

/* Elements from one row to the next: whole octets, an odd number of 16-byte pieces. */
static unsigned row_of(unsigned channels, unsigned element_size)
{
    unsigned pieces = (channels + 7) / 8 * 8 * element_size / 16;
    return (pieces | 1) * 16 / element_size;
}

static size_t place_part(unsigned *offset, size_t at, size_t bytes)
{
    *offset = static_cast<unsigned>(at);
    return at + (bytes + 15) / 16 * 16;
}

static gate_layout layout_for(const device_gate *gate, const gate_tensors &t, unsigned voxels)
{
    unsigned size = t.skip.type == ELEMENT_F32 ? 4 : 2;
    size_t inner_rows = (static_cast<size_t>(gate->inner) + 3) / 4 * 4, bytes = 0;
    gate_layout l = {};
    l.voxels = voxels;
    l.coarse_row = row_of(t.coarse.channels, size);
    l.skip_row = row_of(t.skip.channels, size);
    bytes = place_part(&l.coarse_weights, bytes, inner_rows * l.coarse_row * size);
    bytes = place_part(&l.skip_weights, bytes, inner_rows * l.skip_row * size);
    bytes = place_part(&l.coarse, bytes, static_cast<size_t>(voxels) * l.coarse_row * size);
    bytes = place_part(&l.skip, bytes, static_cast<size_t>(voxels) * l.skip_row * size);
    bytes = place_part(&l.activations, bytes, static_cast<size_t>(gate->inner) * voxels * size);
    bytes = place_part(&l.psi, bytes, gate->inner * sizeof(float));
    bytes = place_part(&l.scale, bytes, voxels * sizeof(float));
    l.bytes = bytes <= SHARED_MOST ? static_cast<unsigned>(bytes) : 0; /* does not fit */
    l.coarse_moves_8 = tensor_moves_8(&t.coarse);
    l.skip_moves_8 = tensor_moves_8(&t.skip);
    l.out_moves_8 = tensor_moves_8(&t.out);
    return l;
}

/* As many voxels as there is work for and as fit; bytes is 0 if 16 do not. */
static gate_layout layout_of(const device_gate *gate, const gate_tensors &t)
{
    unsigned voxels = most_voxels;
    while (voxels > least_voxels && voxels / 4 * ((gate->inner + 3) / 4) > gate_threads)
        voxels /= 2;
    gate_layout layout = layout_for(gate, t, voxels);
    while (layout.bytes == 0 && voxels > least_voxels) {
        voxels /= 2;
        layout = layout_for(gate, t, voxels);
    }
    return layout;
}

static bool same_voxels(const device_tensor *a, const device_tensor *b)
{
    return a->dim[0] == b->dim[0] && a->dim[1] == b->dim[1] && a->dim[2] == b->dim[2] &&
           a->type == b->type;
}

bool attention_gate_takes(const device_gate *gate, const device_tensor *coarse,
                          const device_tensor *skip, const device_tensor *out)
{
    gate_tensors t = {*coarse, *skip, *out};
    return same_voxels(coarse, skip) && same_voxels(skip, out) && skip->channels == out->channels &&
           gate->inner > 0 && layout_of(gate, t).bytes > 0;
}

cudaError_t kernel_attention_gate(const device_gate *gate, const device_tensor *coarse,
                                  const device_tensor *skip, const device_tensor *out,
                                  unsigned samples, cudaStream_t stream)
{
    if (!attention_gate_takes(gate, coarse, skip, out))
        return cudaErrorInvalidValue;
    gate_tensors t = {*coarse, *skip, *out};
    gate_layout layout = layout_of(gate, t);
    size_t voxels = static_cast<size_t>(out->dim[0]) * out->dim[1] * out->dim[2];
    size_t blocks = (voxels + layout.voxels - 1) / layout.voxels * samples;
    if (blocks > 0x7fffffff)
        return cudaErrorInvalidConfiguration;
    return with_type(skip->type, [&](auto element) {
        using T = decltype(element);
        return launch(attention_gate_kernel<T>, dim3(static_cast<unsigned>(blocks)),
                      dim3(gate_threads), layout.bytes, stream, *gate, t, layout);
    });
}

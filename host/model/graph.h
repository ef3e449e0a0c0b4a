/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The network as data: ONNX operators over tensors (N, C, D, H, W), read from the JSON in a weights
 * file (weights/FORMAT.md) and validated there once; everything behind trusts it.
 *
 * Spatial order: the JSON speaks in the network's own axes (`spatial_axes`). Loading turns every
 * kernel, stride, padding, dilation, scale, axis and shape into memory order z, y, x, so that
 * nothing behind the loader knows about it.
 */
#ifndef DOSEMAP_MODEL_GRAPH_H
#define DOSEMAP_MODEL_GRAPH_H

#include "dosemap.h"
#include "kernels/types.h"

typedef enum op_kind {
    OP_CONV,
    OP_CONV_TRANSPOSE,
    OP_BATCH_NORM,
    OP_INSTANCE_NORM,
    OP_GROUP_NORM,
    OP_LEAKY_RELU,
    OP_RELU,
    OP_PRELU,
    OP_ELU,
    OP_GELU,
    OP_SIGMOID,
    OP_TANH,
    OP_SOFTPLUS,
    OP_CLIP,
    OP_ADD,
    OP_MUL,
    OP_SUB,
    OP_CONCAT, /* along channels */
    OP_MAX_POOL,
    OP_AVERAGE_POOL,
    OP_GLOBAL_AVERAGE_POOL,
    OP_RESIZE,
    OP_PAD,
    OP_SLICE,
    OP_IDENTITY, /* also Dropout at inference */
    OP_KIND_COUNT
} op_kind;

typedef enum pad_mode { PAD_CONSTANT, PAD_REFLECT, PAD_EDGE } pad_mode;
typedef enum resize_mode { RESIZE_NEAREST, RESIZE_LINEAR } resize_mode;
/* How an output coordinate falls onto the input, ONNX's coordinate_transformation_mode. */
typedef enum resize_coordinates {
    RESIZE_HALF_PIXEL,
    RESIZE_ALIGN_CORNERS,
    RESIZE_ASYMMETRIC
} resize_coordinates;

/* A value of the graph. Weights have data; activations do not. Shapes are as in ONNX but in memory
 * order: convolution weights (O, I/groups, kz, ky, kx), transposed ones (I, O/groups, kz, ky, kx);
 * activations have only `channels` here, their spatial size depends on the tile. */
typedef struct graph_value {
    char *name;
    bool is_weight;
    size_t rank;
    size_t shape[5];
    size_t count;    /* elements of a weight */
    float *data;     /* float32, owned; NULL for activations */
    size_t channels; /* of an activation */
} graph_value;

typedef struct graph_node {
    op_kind op;
    char *name;
    size_t n_inputs; /* with the optional ones: a Conv always has three */
    int *inputs;     /* value ids; -1 for an optional input left out */
    int output;
    /* Attributes, z, y, x; those an operator does not have stay at their defaults. */
    int kernel[3], stride[3], dilation[3];
    int pad_begin[3], pad_end[3]; /* pools and convolutions; OP_PAD: cells added (>= 0) */
    int output_padding[3];
    int groups;      /* convolutions; num_groups of GroupNormalization */
    float alpha;     /* LeakyRelu, Elu */
    float low, high; /* Clip; infinite: no bound */
    float epsilon;   /* normalisations */
    bool gelu_tanh;  /* approximate="tanh" */
    bool ceil_mode, count_include_pad;
    pad_mode pad;
    float pad_value;
    resize_mode resize;
    resize_coordinates coordinates;
    bool nearest_floor; /* nearest: floor instead of round_prefer_floor */
    double scales[3];   /* Resize: output size = floor(input * scale); 0 where `sizes` is given */
    int sizes[3];       /* Resize: output size, 0 where `scales` is given */
    /* Slice. Spatial: negative counts from the end, INT_MAX is the end. Channels: resolved,
     * 0 <= begin < end <= channels. */
    int slice_begin[3], slice_end[3], slice_step[3];
    int channel_begin, channel_end, channel_step;
} graph_node;

typedef struct graph_port {
    int value;
    dm_quantity quantity;
    char *unit;
    size_t channels;
    intensity_transform intensity; /* inputs: quantity -> network; outputs: network -> quantity */
    bool voxelwise;                /* it has the inputs' spatial size; a dose map needs it */
} graph_port;

typedef struct graph {
    char *name;
    int graph_version;
    char orientation[8]; /* "RAS", ... or "stored" */
    bool axes_xyz;       /* how the JSON spoke; already applied */
    size_t patch[3];     /* training patch in voxels, x, y, z */
    bool has_voxel_mm;
    double voxel_mm[3]; /* x, y, z */
    size_t n_values;
    graph_value *values;
    size_t n_nodes;
    graph_node *nodes; /* in an order in which every input is ready */
    size_t n_inputs, n_outputs;
    graph_port *inputs, *outputs;
    size_t total_stride[3];   /* z, y, x: a tile must be a multiple of it */
    bool per_tile_statistics; /* Instance- or GroupNormalization, GlobalAveragePool */
} graph;

struct dm_model {
    char *path;
    char *name;
    char *card_json, *graph_json, *provenance_json;
    char checksum[17];          /* XXH64 of the data section */
    double skip_air;            /* the card's default, in the input quantity; -INFINITY: none */
    uint32_t native_precisions; /* bit (1u << dm_precision): listed in the card with a deviation of
                                   at most 0.5 % */
    graph graph;
};

const char *op_name(op_kind op);

/* Sizes beyond this, and channel counts beyond GRAPH_MAX_CHANNELS, are refused; their products may
 * still be too large for memory, so allocations check theirs. */
#define GRAPH_MAX_EXTENT ((size_t)1 << 24)
#define GRAPH_MAX_CHANNELS ((size_t)1 << 20)

/* The spatial size (z, y, x) of a node's output for its input's; false and a reason if it is none.
 * For operators with several inputs `in` is the broadcast size. */
bool node_output_size(const graph_node *node, const size_t in[3], size_t out[3], char *reason,
                      size_t reason_size);

/* The spatial size (z, y, x) of every value, sizes[n_values], for inputs of size `tile`; weights
 * count as 1x1x1. False and a reason that names the node if the network is not defined for this
 * tile. */
bool graph_sizes(const graph *g, const size_t tile[3], size_t (*sizes)[3], char *reason,
                 size_t reason_size);

/* Index of the one output that is a dose per activity; -1 where there is none, or several. */
int graph_dose_output(const graph *g);

/* Channels of all inputs together. */
size_t graph_input_channels(const graph *g);

/* Which values `value` is computed from, itself included: needed[n_values]. */
void graph_needed(const graph *g, int value, bool *needed);

/* Slice along one axis of `size`: index of the first element and how many; false if it is empty. */
bool slice_resolve(int begin, int end, int step, size_t size, size_t *first, size_t *count);

#endif

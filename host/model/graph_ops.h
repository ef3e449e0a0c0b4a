/* SPDX-License-Identifier: Apache-2.0 */
/* The operators and their attributes as tables: what a graph may say, and where it is kept. */
#ifndef DOSEMAP_MODEL_GRAPH_OPS_H
#define DOSEMAP_MODEL_GRAPH_OPS_H

#include "model/graph.h"

#define OP_BIT(op) (1u << (op))

typedef struct op_info {
    const char *name; /* in ONNX */
    size_t min_inputs, max_inputs;
    bool weights_last; /* inputs after the first are weights */
} op_info;

extern const op_info op_table[OP_KIND_COUNT];

typedef enum attribute_kind {
    ATTRIBUTE_INT,     /* one integer -> int */
    ATTRIBUTE_INTS,    /* three, spatial -> int[3] */
    ATTRIBUTE_PADS,    /* three begins, three ends -> int[3], int[3] of the node's pads */
    ATTRIBUTE_FLAG,    /* 0 or 1 -> bool */
    ATTRIBUTE_FLOAT,   /* -> float */
    ATTRIBUTE_NUMBERS, /* three, spatial -> double[3] */
    ATTRIBUTE_CHOICE,  /* one of `choices` -> enum (its index) */
    ATTRIBUTE_SWITCH,  /* one of two `choices` -> bool */
    ATTRIBUTE_CHECK,   /* one integer that can only be `minimum` */
    ATTRIBUTE_SLICE    /* starts, ends, axes, steps: read together */
} attribute_kind;

typedef struct attribute_info {
    const char *name;
    attribute_kind kind;
    uint32_t ops;      /* OP_BITs that have it */
    uint32_t required; /* OP_BITs that must have it */
    size_t offset;     /* in graph_node */
    double minimum, maximum;
    const char *choices[4];
} attribute_info;

extern const attribute_info attribute_table[];
extern const size_t attribute_count;

/* NULL if the operator has no such attribute. */
const attribute_info *attribute_find(op_kind op, const char *name);

/* False if `name` is no operator. */
bool op_find(const char *name, op_kind *op);

/* "Conv, ConvTranspose, ..." and "kernel_shape, strides, ..." for messages. */
void op_list(char *text, size_t size);
void attribute_list(op_kind op, char *text, size_t size);

#endif

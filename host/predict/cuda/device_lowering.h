/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From the steps of a plan to what the device runs one after the other: mostly one operation for
 * one step. The four steps of an attention gate,
 *
 *     t1 = conv1(coarse), t2 = relu(conv1(skip) + t1), s = sigmoid(conv1(t2)), out = skip * s,
 *
 * become one where a kernel takes it.
 */
#ifndef DOSEMAP_PREDICT_CUDA_DEVICE_LOWERING_H
#define DOSEMAP_PREDICT_CUDA_DEVICE_LOWERING_H

#include "model/plan.h"

typedef enum lowered_kind {
    LOWERED_STEP, /* by the step's kind */
    LOWERED_GATE
} lowered_kind;

typedef struct lowered_op {
    lowered_kind kind;
    const plan_step *step; /* of a gate, the multiplication */
    /* Gates only: the convolutions of coarse and skip, and psi. */
    const plan_step *coarse, *skip, *psi;
} lowered_op;

/* Called with the tensors of a gate; true if it may become one operation. */
typedef bool (*gate_question)(const plan *steps, const lowered_op *gate, void *context);

/* ops: room for steps->n_steps of them; returns how many there are. */
size_t lower_plan(const plan *steps, gate_question takes, void *context, lowered_op *ops);

/* The tensors that an operation reads, number i from 0; -1 behind the last. */
int lowered_read(const lowered_op *op, size_t i);
/* Of a plan: those that a step's chain reads. */
bool link_has_tensor(const chain_link *link);

#endif

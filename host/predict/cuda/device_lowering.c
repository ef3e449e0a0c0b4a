/* SPDX-License-Identifier: Apache-2.0 */
#include "predict/cuda/device_lowering.h"

#include <string.h>

bool link_has_tensor(const chain_link *link)
{
    return link->op <= CHAIN_RSUB_TENSOR;
}

int lowered_read(const lowered_op *op, size_t i)
{
    if (op->kind == LOWERED_GATE)
        return i == 0 ? op->coarse->in : i == 1 ? op->skip->in : -1;
    if (i == 0)
        return op->step->in;
    for (size_t l = 0; l < op->step->n_chain; l++)
        if (link_has_tensor(&op->step->chain[l]) && --i == 0)
            return op->step->chain[l].tensor;
    return -1;
}

/* ---- Gates ---------------------------------------------------------------------------------- */

static bool is_point_convolution(const plan_step *step)
{
    return step->kind == STEP_CONV && step->node->groups == 1 && conv_is_voxelwise(step->node);
}

/* How many steps read a tensor; the network's output is read once more. */
static size_t count_readers(const plan *p, int tensor)
{
    size_t n = tensor == p->output;
    for (size_t s = 0; s < p->n_steps; s++) {
        const lowered_op op = {.step = &p->steps[s]};
        int read;
        for (size_t i = 0; (read = lowered_read(&op, i)) >= 0; i++)
            n += read == tensor;
    }
    return n;
}

static bool is_dense(const plan_tensor *t)
{
    return t->pitch == t->channels;
}

static bool same_size(const plan_tensor *a, const plan_tensor *b)
{
    return memcmp(a->dim, b->dim, sizeof a->dim) == 0;
}

/* Steps first .. first + 3: a gate, but for which of the convolutions is the skip's? */
static bool has_shape_of_gate(const plan *p, size_t first)
{
    const plan_step *a = &p->steps[first], *b = a + 1, *psi = a + 2, *mul = a + 3;
    if (!is_point_convolution(a) || !is_point_convolution(b) || !is_point_convolution(psi) ||
        mul->kind != STEP_POINTWISE)
        return false;
    if (a->n_chain != 0 || b->n_chain != 2 || psi->n_chain != 1 || mul->n_chain != 1)
        return false;
    const chain_link *sum = &b->chain[0], *gate = &mul->chain[0];
    return sum->op == CHAIN_ADD_TENSOR && sum->tensor == a->out && b->chain[1].op == CHAIN_RELU &&
           psi->in == b->out && psi->chain[0].op == CHAIN_SIGMOID &&
           p->tensors[psi->out].channels == 1 && gate->op == CHAIN_MUL_TENSOR &&
           gate->tensor == psi->out;
}

/* What lies between is read by nobody else. */
static bool is_private(const plan *p, const lowered_op *gate)
{
    const plan_tensor *out = &p->tensors[gate->step->out];
    const int inner[3] = {gate->coarse->out, gate->skip->out, gate->psi->out};
    for (int i = 0; i < 3; i++) {
        const plan_tensor *t = &p->tensors[inner[i]];
        if (!is_dense(t) || t->type != out->type || !same_size(t, out) ||
            count_readers(p, inner[i]) != 1)
            return false;
    }
    return p->tensors[gate->coarse->out].channels == p->tensors[gate->skip->out].channels;
}

static bool find_gate(const plan *p, size_t first, lowered_op *gate)
{
    if (first + 4 > p->n_steps || !has_shape_of_gate(p, first))
        return false;
    const plan_step *a = &p->steps[first], *b = a + 1, *mul = a + 3;
    *gate = (lowered_op){
        .kind = LOWERED_GATE, .step = mul, .coarse = a, .skip = b, .psi = &p->steps[first + 2]};
    if (mul->in == a->in) {
        gate->coarse = b;
        gate->skip = a;
    }
    return mul->in == gate->skip->in && is_private(p, gate);
}

size_t lower_plan(const plan *p, gate_question takes, void *context, lowered_op *ops)
{
    size_t n = 0;
    for (size_t s = 0; s < p->n_steps; s++) {
        lowered_op gate;
        if (find_gate(p, s, &gate) && takes && takes(p, &gate, context)) {
            ops[n++] = gate;
            s += 3;
        } else {
            ops[n++] = (lowered_op){.kind = LOWERED_STEP, .step = &p->steps[s]};
        }
    }
    return n;
}

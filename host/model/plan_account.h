/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a device moves and computes for a plan, operation by operation: counted from the operands
 * that the executor passes to each launch, not from the plan (plan_cost.c does that).
 */
#ifndef DOSEMAP_MODEL_PLAN_ACCOUNT_H
#define DOSEMAP_MODEL_PLAN_ACCOUNT_H

#include <stdbool.h>
#include <stddef.h>

/* Bytes and FLOPs of launches. Every operand counts once for each launch, as if it were read from
 * memory and written to it, whatever caches do. */
typedef struct account_sum {
    double read, written; /* activations; PET and sums of windows before and behind the network */
    double weights;       /* read: weights, biases, per-channel parameters, tables */
    double workspace;     /* twice its size: written, then read */
    double flop;          /* of convolutions, multiply and add counted as two, padding included */
    double launches;
} account_sum;

static inline double account_bytes(const account_sum *sum)
{
    return sum->read + sum->written + sum->weights + sum->workspace;
}

/* An operation, per window: of a launch that several windows share, each has its part. */
typedef struct plan_account_row {
    char name[64];
    char way[160];    /* the kernel, or the library's plan, and what else is launched for it */
    unsigned samples; /* windows of a launch */
    account_sum sum;
} plan_account_row;

typedef struct plan_account {
    char device[256], library[48];
    bool emulated;
    bool described; /* the device is not there: a description stands for it */
    bool tuned;     /* convolutions as timing found them fastest on this device */
    unsigned batch;
    size_t library_plans,
        joined_plans; /* operations that have one; with bias or activation in it */
    size_t n_rows;
    plan_account_row *rows; /* cutting out windows, the operations, adding them up */
    account_sum total;
} plan_account;

/* Releases the rows. */
void plan_account_clear(plan_account *account);

#endif

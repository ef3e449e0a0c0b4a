/* SPDX-License-Identifier: Apache-2.0 */
/* What bounds the CPU: copying, multiplying from registers, a product by oneDNN; and its energy. */
#include <glob.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/parallel.h"
#include "predict/cpu/cpu_measure.h"
#include "predict/cpu/fma_rate.h"
#include "predict/cpu/network.h"
#include "predict/cpu/onednn_product.h"
#include "predict/job_messages.h"

#define SECONDS 0.5
#define PRODUCT_EDGE 2048
/* Of each of the two buffers; far beyond any cache that threads do not share with other machines. */
#define COPY_BYTES ((size_t)256 << 20)
#define COPY_RUNS 5

typedef struct copy_job {
    unsigned char *to, *from;
    unsigned parts;
} copy_job;

static void copy_part(void *context, unsigned part)
{
    const copy_job *c = context;
    size_t start = COPY_BYTES / c->parts * part;
    size_t bytes = part + 1 < c->parts ? COPY_BYTES / c->parts : COPY_BYTES - start;
    memcpy(c->to + start, c->from + start, bytes);
}

/* The fastest of some passes; the first one, which touches the pages, is not counted. */
static dm_status copy_rate(unsigned threads, double *rate, dm_error *err)
{
    copy_job c = {
        .to = array_alloc(COPY_BYTES, 1), .from = array_alloc(COPY_BYTES, 1), .parts = threads};
    dm_status status = DM_OK;
    if (!c.to || !c.from)
        status = error_memory(err, 2 * COPY_BYTES, "the ceiling of copies");
    else
        memset(c.from, 0x3c, COPY_BYTES);
    for (int i = 0; i <= COPY_RUNS && status == DM_OK; i++) {
        double start = job_clock();
        parallel_run(threads, copy_part, &c);
        double found = 2.0 * (double)COPY_BYTES / (job_clock() - start);
        if (i > 0 && !(found <= *rate))
            *rate = found;
    }
    free(c.to);
    free(c.from);
    return status;
}

dm_status cpu_ceilings(element_type type, unsigned threads, measured_ceilings *ceilings,
                       dm_error *err)
{
    bool bf16 = type == ELEMENT_BF16;
    *ceilings = (measured_ceilings){.copy_bytes = NAN, .product_flop = NAN, .own_flop = NAN};
    dm_status status = copy_rate(threads, &ceilings->copy_bytes, err);
    ceilings->fma_flop = fma_rate(bf16, threads, SECONDS);
    if (status == DM_OK)
        status =
            onednn_product_rate(bf16, PRODUCT_EDGE, threads, SECONDS, &ceilings->product_flop, err);
    snprintf(ceilings->product_how, sizeof ceilings->product_how, "%s, %d x %d x %d",
             network_library(), PRODUCT_EDGE, PRODUCT_EDGE, PRODUCT_EDGE);
    return status;
}

double cpu_energy(void)
{
    glob_t found = {0};
    double joules = NAN;
    /* Packages; their parts (cores, memory) have a second number. */
    if (glob("/sys/class/powercap/intel-rapl:[0-9]*/energy_uj", 0, NULL, &found) == 0)
        for (size_t i = 0; i < found.gl_pathc; i++) {
            double microjoules;
            const char *path = found.gl_pathv[i], *first = strchr(path, ':');
            if (!first || strchr(first + 1, ':'))
                continue;
            FILE *f = fopen(path, "re");
            if (f && fscanf(f, "%lf", &microjoules) == 1)
                joules = (isnan(joules) ? 0 : joules) + 1e-6 * microjoules;
            if (f)
                fclose(f);
        }
    globfree(&found);
    return joules;
}

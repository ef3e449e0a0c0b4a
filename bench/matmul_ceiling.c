/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What oneDNN reaches in a large matrix product on all threads, GFLOP/s: a second ceiling beside
 * fma_ceiling, with memory in it. Threads are OpenMP's (OMP_NUM_THREADS). Waits for orders:
 *
 *     matmul_ceiling float32|bf16 SIZE
 *
 *     run SECONDS
 *     quit
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cores.h"
#include "predict/cpu/onednn_product.h"

int main(int argc, char **argv)
{
    char line[256], text[2048];
    double seconds, rate;
    dm_error err = {0};
    if (argc != 3 || strtoul(argv[2], NULL, 10) < 1) {
        fprintf(stderr, "usage: matmul_ceiling float32|bf16 SIZE\n");
        return 2;
    }
    size_t size = strtoul(argv[2], NULL, 10);
    while (fflush(stdout) == 0 && fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "run %lf", &seconds) != 1)
            break;
        if (onednn_product_rate(strcmp(argv[1], "bf16") == 0, size, cores_or(0), seconds, &rate,
                                &err) != DM_OK) {
            fprintf(stderr, "matmul_ceiling: %s\n", dm_error_text(&err, text, sizeof text));
            return 1;
        }
        printf("{\"rate\": %.2f}\n", rate * 1e-9);
    }
    return 0;
}

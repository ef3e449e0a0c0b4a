/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the cores can multiply and add from registers alone, GFLOP/s. Waits for orders as
 * network_server does:
 *
 *     fma_ceiling float32|bf16 THREADS
 *
 *     run SECONDS
 *     quit
 *
 * A precision without instructions of its own answers {"rate": null}.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "predict/cpu/fma_rate.h"

int main(int argc, char **argv)
{
    char line[256];
    double seconds;
    if (argc != 3 || strtoul(argv[2], NULL, 10) < 1) {
        fprintf(stderr, "usage: fma_ceiling float32|bf16 THREADS\n");
        return 2;
    }
    while (fflush(stdout) == 0 && fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "run %lf", &seconds) != 1)
            break;
        double rate =
            fma_rate(strcmp(argv[1], "bf16") == 0, (unsigned)strtoul(argv[2], NULL, 10), seconds);
        if (isnan(rate))
            printf("{\"rate\": null}\n");
        else
            printf("{\"rate\": %.2f}\n", rate * 1e-9);
    }
    return 0;
}

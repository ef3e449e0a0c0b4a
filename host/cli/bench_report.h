/* SPDX-License-Identifier: Apache-2.0 */
/* What `dosemap bench` says to people of what dm_benchmark found; between json_work_begin and
 * json_work_end. */
#ifndef DOSEMAP_CLI_BENCH_REPORT_H
#define DOSEMAP_CLI_BENCH_REPORT_H

#include <stdio.h>

/* json: of dm_benchmark. */
void bench_report(FILE *out, const char *json);

#endif

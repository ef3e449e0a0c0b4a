/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DOSEMAP_CLI_NUMBER_LIST_H
#define DOSEMAP_CLI_NUMBER_LIST_H

#include <stddef.h>

#define MAX_VX 64

/* "a,b,c", at most `most` numbers: how many, or 0 if it is malformed. */
size_t number_list(const char *text, double *values, size_t most);

#endif

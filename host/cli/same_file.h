/* SPDX-License-Identifier: Apache-2.0 */
/* For outputs that must not be one of the inputs, however the two are spelled. */
#ifndef DOSEMAP_CLI_SAME_FILE_H
#define DOSEMAP_CLI_SAME_FILE_H

#include <stdbool.h>

/* False where either is NULL or not there. */
bool same_file(const char *a, const char *b);

#endif

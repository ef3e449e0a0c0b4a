/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DOSEMAP_BASE_AVAILABLE_MEMORY_H
#define DOSEMAP_BASE_AVAILABLE_MEMORY_H

#include <stddef.h>

/* Bytes that this process can hold in all, what it holds already included, before the machine, one
 * of its control groups (version 1 or 2), RLIMIT_AS or RLIMIT_DATA stops it. Swap is not counted.
 * SIZE_MAX where nothing is known. */
size_t available_memory(void);

/* The same for a system whose /proc and /sys lie below `root` ("" is this one); no RLIMITs. */
size_t available_memory_under(const char *root);

/* 1.2 GiB */
#define SIZE_TEXT 32
const char *size_text(double bytes, char text[SIZE_TEXT]);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DOSEMAP_BASE_CORES_H
#define DOSEMAP_BASE_CORES_H

/* `wanted` if not 0, else OMP_NUM_THREADS, else the cores this process may run on; at least 1. */
unsigned cores_or(unsigned wanted);

#endif

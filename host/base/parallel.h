/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DOSEMAP_BASE_PARALLEL_H
#define DOSEMAP_BASE_PARALLEL_H

/* Calls work(context, part) for part = 0..parts-1, each in a thread of its own where one can be
 * had, part 0 in the caller's; returns when all are done. Signals stay with the caller's thread. */
void parallel_run(unsigned parts, void (*work)(void *context, unsigned part), void *context);

#endif

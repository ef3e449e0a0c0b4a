/* SPDX-License-Identifier: Apache-2.0 */
/* The emulated toolkit's profiling ranges: nothing but a check that each pop has its push. */
#ifndef EMULATED_NVTOOLSEXT_H
#define EMULATED_NVTOOLSEXT_H

#ifdef __cplusplus
extern "C" {
#endif

/* Both give the depth of the range, from 0 on, of this thread. A pop without a push aborts. */
int nvtxRangePushA(const char *message);
int nvtxRangePop(void);
void nvtxMarkA(const char *message);

#define nvtxRangePush nvtxRangePushA
#define nvtxMark nvtxMarkA

#ifdef __cplusplus
}
#endif

#endif
